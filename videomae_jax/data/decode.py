"""Video file -> chosen frames. The only module that reads with PyAV.

Frames are numbered in the order of display, 0 to count - 1. Frame i is the same image however
it is reached: with B-frames, variable frame rate, edit lists or open groups of pictures.
"""

import io
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from videomae_jax.data.decoders import CONTAINERS, open_decoder
from videomae_jax.data.sampling import Choose, make_choice
from videomae_jax.data.storage import UnreadableVideo, fetch_video, is_transient, open_blocks
from videomae_jax.errors import UserError
from videomae_jax.paths import is_remote

PIXEL_FORMATS = {1: "gray", 3: "rgb24"}
# The decoder decodes up to a next key frame that is at most this far, and seeks to one further
# away: the break-even of intra-only files and of groups of 12.
SEEK_FRAMES = 3
# Containers whose duration FFmpeg estimates from what is there, as FFmpeg names them.
ESTIMATED = ("mpegts", "mpeg", "h264", "hevc", "m4v", "ivf")

Matrix = tuple[int, int, int, int] | None  # a, b, c, d, see `_display_matrix`


def read_clip(
    source: str | bytes,
    choose: Choose,
    *,
    channels: int = 3,
    decoder: str = "pyav",
    indexed: bool = False,
    out: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Decode chosen frames of a video: uint8 [F, H, W, channels], RGB or grey, upright.

    source: a path, an address in a bucket, or the bytes of a file. choose: called once with the
    exact number of frames, or with their times, before any is decoded; returns the indices of the
    frames, [F], in any order. Repeated ones are decoded once. Rotation flags are applied, alpha is
    dropped, grey covers 0 to 255. decoder: see `decoders.open_decoder`. Frame i is the same image
    with each: PyAV reads grey, and files that another decoder would number differently or cannot
    read.
    indexed: the file was written by `encode.Mp4Writer`, so the index of the container numbers
    its frames. out, rows: a larger clip and the rows of it to write to, which saves a copy; used
    with PyAV only. Raises UnreadableVideo for any fault of the file, UserError for a number of
    channels other than 1 and 3 and for a decoder that is not installed.
    """
    _check_channels(channels)
    decode = open_decoder(decoder)
    source = fetch_video(source)
    if isinstance(source, str) and is_remote(source):
        decode = None  # the other decoders open files
    with _opened(source, probe=not indexed) as (container, stream):
        timeline = _read_index(stream) if indexed else _scan(source, container, stream)
        indices = make_choice(
            choose, timeline.count, lambda: check_times(_seconds(stream, timeline))
        )
        if decode and channels == 3 and timeline.plain and not _mirrored(source, container):
            clip = decode(source, indices.tolist(), timeline.count)
            if clip is not None:
                return clip
        wanted = np.unique(indices).tolist()
        for index, frame in _frames(source, container, stream, timeline, wanted):
            picture = _picture(frame, channels)
            if out is None:
                out = np.empty((len(indices), *picture.shape), np.uint8)
            check_size(picture.shape[:2], out.shape[1:3])
            for row in np.flatnonzero(indices == index):
                out[row if rows is None else rows[row]] = picture
    assert out is not None, "choose returned no frames"
    return out


@contextmanager
def open_frames(source: str | bytes, *, channels: int = 3) -> Iterator[tuple]:
    """Open a video to read it once from beginning to end: (seconds, read).

    seconds: float64 [count + 1], when each frame appears and when the last one ends, relative to
    the first: presentation times, or computed from the average rate if frames have no times (NaN
    if there is no rate either). `read(wanted)` yields the frames of increasing indices, uint8
    [H, W, channels], and holds one at a time. Both raise as `read_clip` does.
    """
    _check_channels(channels)
    source = fetch_video(source)
    with _opened(source) as (container, stream):
        timeline = _scan(source, container, stream)

        def read(wanted: list[int]) -> Iterator[np.ndarray]:
            size = None
            for _, frame in _frames(source, container, stream, timeline, wanted):
                picture = np.ascontiguousarray(_picture(frame, channels))
                size = size or picture.shape[:2]
                check_size(picture.shape[:2], size)
                yield picture

        yield _seconds(stream, timeline), read


def _check_channels(channels: int) -> None:
    if channels not in PIXEL_FORMATS:
        raise UserError(f"a clip has 1 channel (grey) or 3 (RGB), not {channels}: use 3")


def check_size(size: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raise UnreadableVideo if the (height, width) of a frame is not that of the first one."""
    if size != first:
        raise UnreadableVideo(f"the picture size changes from {first} to {size}")


def read_size(source: str | bytes) -> tuple[int, int]:
    """Return the height and the width of the first frame, upright. Raises UnreadableVideo."""
    frame = _first_frame(source)
    height, width = _upright(np.empty((frame.height, frame.width)), _display_matrix(frame)).shape
    return height, width


def read_duration(source: str | bytes) -> float:
    """Return the seconds that a file states. Raises UnreadableVideo, also if it states none."""
    with _opened(source) as (container, stream):
        if container.duration:
            return container.duration / av.time_base
        if stream.duration:
            return float(stream.duration * stream.time_base)
        raise UnreadableVideo("states no duration")


def read_seconds(source: str | bytes) -> np.ndarray:
    """Return the times of all frames, see `open_frames`. Raises UnreadableVideo."""
    source = fetch_video(source)
    with _opened(source) as (container, stream):
        return check_times(_seconds(stream, _scan(source, container, stream)))


@dataclass(frozen=True)
class VideoFacts:
    """Facts about a file: the exact number of frames, frames per second, and what is unusual.

    steady: False if frames are displayed for unequal times. rate: the mean, 0 if the file has no
    times. codec, pixels: FFmpeg's names. missing: how many seconds the frames end before the
    duration that the container states, 0 if it states none. choice: the video streams if there
    are several, the one that is read first. pixel_aspect: the width of a pixel of the upright
    picture divided by its height.
    """

    frames: int
    rate: float
    steady: bool
    codec: str
    pixels: str
    missing: float = 0.0
    choice: tuple[str, ...] = ()
    pixel_aspect: float = 1.0


def read_facts(source: str | bytes) -> VideoFacts:
    """Read the facts of a file. Raises UnreadableVideo as `read_clip` does.

    Nothing is decoded, but the first frame where pixels are not square.
    """
    source = fetch_video(source)
    with _opened(source) as (container, stream):
        streams = _video_streams(container)
        timeline = _scan(source, container, stream)
        rate, steady = float(_rate(stream) or 0), True
        if timeline.times and timeline.count > 1:
            gaps = np.diff(timeline.times)
            rate = float(1 / (gaps.mean() * stream.time_base))
            # Containers round times, for example to a millisecond.
            steady = bool(np.ptp(gaps) <= max(1, 0.1 * gaps.mean()))
        aspect = float(stream.sample_aspect_ratio or 1)
        if aspect != 1 and _is_turned(_display_matrix(_first_frame(source))):
            aspect = 1 / aspect
        return VideoFacts(
            frames=timeline.count,
            rate=rate,
            steady=steady,
            codec=stream.codec_context.name,
            pixels=stream.codec_context.pix_fmt or "",
            missing=_missing_seconds(container, stream, timeline),
            choice=tuple(map(_describe, streams)) if len(streams) > 1 else (),
            pixel_aspect=aspect,
        )


def _describe(stream) -> str:
    context = stream.codec_context
    return f"stream {stream.index}, {context.name} {context.width} x {context.height}"


def _missing_seconds(container, stream, timeline: "Timeline") -> float:
    """Return the seconds between the end of the last frame and the end of the container."""
    if not container.duration or timeline.times is None:
        return 0.0
    if any(name in container.format.name for name in ESTIMATED):
        return 0.0
    begin = (container.start_time or 0) / av.time_base
    first = timeline.times[0] * float(stream.time_base)
    end = first + float(_seconds(stream, timeline)[-1])
    return max(0.0, begin + container.duration / av.time_base - end)


@dataclass(frozen=True)
class Timeline:
    """The frames of a stream in the order of display.

    times: their presentation times in units of the stream, None if they are not all different.
    keys: the frames, in increasing order, where decoding can begin; key_times: the times of their
    key frames, which may be earlier, because an edit list can hide a key frame. plain: whether
    every decoder numbers the frames of this stream in the same way. start: the time to seek to
    for the beginning.
    """

    count: int
    times: list[int] | None
    keys: list[int]
    key_times: list[int]
    plain: bool
    start: int = 0


@contextmanager
def _opened(source: str | bytes, *, probe: bool = True) -> Iterator[tuple]:
    """Open (container, video stream); errors of FFmpeg become UnreadableVideo.

    probe: decode a picture to find out its format, which takes half of the time of opening.
    Without it `pix_fmt` of the stream is None; frames have their format.
    """
    # FFmpeg would take "10:20.mp4" for the address of a protocol "10".
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        if isinstance(source, str) and is_remote(source):
            file = open_blocks(source)
        # A playlist with the name of a video must not open network connections, and a title in
        # an old encoding is not an error.
        local = {"protocol_whitelist": "file"}
        # Options for probing only. PyAV's stubs say list[str]; it takes dictionaries.
        streams: list[Any] = [] if probe else [{"skip_frame": "all"}]
        with av.open(
            file, options=local, stream_options=streams, metadata_errors="replace"
        ) as container:
            stream = next(iter(_video_streams(container)), None)
            if stream is None:
                raise UnreadableVideo("no video stream")
            if stream.codec_context is None:
                raise UnreadableVideo("no decoder for its codec")
            # One thread per decoder: the pipeline runs many decoders in parallel.
            stream.codec_context.thread_count = 1
            # Opened here, because some decoders read `skip_frame` only when they are opened.
            stream.codec_context.open()
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if source == b"" or (
            isinstance(source, str) and os.path.isfile(source) and not os.path.getsize(source)
        ):
            reason = "the file is empty"
        raise UnreadableVideo(reason.lower(), transient=is_transient(error)) from error


def _video_streams(container) -> list:
    """Return the video streams, best first, as the ffmpeg command chooses.

    That is the one marked as the default, then the one with the most pixels, then the first.
    Cover pictures and thumbnails are left out. A stream without a decoder comes last.
    """

    def rank(stream) -> tuple[bool, bool, int]:
        context = stream.codec_context
        pixels = context.width * context.height if context else 0
        return context is None, not stream.disposition & Disposition.default, -pixels

    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & stills]
    return sorted(streams, key=rank)


def _scan(source: str | bytes, container, stream) -> Timeline:
    """Number the frames without decoding them.

    All packets are read: the index of a container is exact for mp4 only, and gives decoding
    times, which differ from display times if there are B-frames. For a 300-frame clip this takes
    1.6 ms of 30; reading the index takes 0.2 ms.
    """
    times: list[int] = []
    keys: list[int] = []
    packets = 0
    timed, leading, discards = True, False, False
    for packet in _packets(container, stream):
        packets += bool(packet.size)  # the last one is empty: the end
        if not packet.size or packet.is_corrupt:
            continue
        # An edit list hides frames, but other frames refer to them.
        discards |= packet.is_discard
        if packet.pts is None:
            timed = False
            continue
        if not packet.is_discard:
            times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        elif keys:
            # An open group of pictures: displayed before the key frame it follows.
            leading |= packet.pts < keys[-1]
    entries = stream.index_entries if "mp4" in container.format.name else ()
    if packets < len(entries):
        expected = sum(entry.size > 0 for entry in entries)
        if packets < expected:
            raise UnreadableVideo(f"truncated: {packets} of {expected} frames are there")
    # AVI has no display times: those it reports for reordered frames are made up.
    made_up = container.format.name == "avi" and stream.codec_context.has_b_frames
    start = min([0, *times])
    # Only the first packet has the palette, and a seek drops it: the pictures would be black.
    paletted = stream.codec_context.pix_fmt == "pal8"
    if made_up or paletted or not timed or len(set(times)) < len(times):
        count = sum(1 for _ in _decode_all(source))
        timeline = Timeline(count=count, times=None, keys=[0], key_times=[0], plain=False)
    else:
        # A recording may begin within a group of pictures: frames before its first key frame
        # cannot be decoded.
        times = sorted(time for time in times if not keys or time >= min(keys))
        # By the first frame displayed from there on; the last of several hidden key frames.
        by_frame = {bisect_left(times, time): time for time in sorted(keys)} or {0: start}
        by_frame.pop(len(times), None)
        named = any(name in container.format.name for name in CONTAINERS)
        timeline = Timeline(
            count=len(times),
            times=times,
            keys=list(by_frame),
            key_times=list(by_frame.values()),
            plain=named and not leading and not discards,
            start=start,
        )
    if not timeline.count:
        raise UnreadableVideo("no frames")
    return timeline


def _read_index(stream) -> Timeline:
    """Number the frames by the index of an mp4 of `encode.Mp4Writer`, without its packets.

    Its times are decoding times: as evenly spaced as display times, and earlier by the delay of
    reordering. Groups are closed, so a key frame has the same index in both orders.
    """
    entries = list(stream.index_entries)
    if not entries:
        raise UnreadableVideo("no frames")
    return Timeline(
        count=len(entries),
        times=[entry.timestamp - entries[0].timestamp for entry in entries],
        keys=[index for index, entry in enumerate(entries) if entry.is_keyframe],
        key_times=[e.timestamp - entries[0].timestamp for e in entries if e.is_keyframe],
        plain=True,
    )


def _seconds(stream, timeline: Timeline) -> np.ndarray:
    """Return when each frame appears and the last one ends, see `open_frames`."""
    if timeline.times is None:
        return np.arange(timeline.count + 1) / float(_rate(stream) or "nan")
    seconds = (np.array(timeline.times) - timeline.times[0]) * float(stream.time_base)
    if timeline.count > 1:
        last = float(np.median(np.diff(seconds)))
    else:
        last = 1 / float(_rate(stream) or "nan")
    return np.append(seconds, seconds[-1] + last)


def check_times(seconds: np.ndarray) -> np.ndarray:
    """Return times; raises UnreadableVideo for those of a file without times and a rate, NaN."""
    if np.isnan(seconds).any():
        raise UnreadableVideo("its frames have no times, and it states no frame rate")
    return seconds


def _rate(stream) -> Fraction | None:
    """Return the frames per second that the stream states, None if it states none.

    The guess comes first: the mean rate of an AVI with reordered frames counts its empty packets.
    """
    return stream.guessed_rate or stream.average_rate


def _frames(
    source: str | bytes, container, stream, timeline: Timeline, wanted: list[int]
) -> Iterator[tuple]:
    """Yield (index, frame) of each wanted frame, in increasing order."""
    times = timeline.times
    if times is None:
        yield from _counted(source, timeline, wanted)
        return
    wanted_times = {times[index] for index in wanted}
    last = None  # the index of the frame decoded last
    decoded: Iterator[av.VideoFrame] = iter(())
    for position, index in enumerate(wanted):
        frame = None
        key = bisect_right(timeline.keys, index) - 1
        if last is not None and timeline.keys[key] - last <= SEEK_FRAMES:
            frame = _until(decoded, times[index])
        # From its key frame, else from an earlier one: seeks in MPEG streams arrive late.
        for first in dict.fromkeys((key, max(key - 1, 0), 0)):
            if frame is None:
                begin = timeline.key_times[first] if first else timeline.start
                container.seek(begin, stream=stream)
                decoded = _decode(container, stream, wanted_times)
                frame = _until(decoded, times[index])
        if frame is None:
            yield from _counted(source, timeline, wanted[position:])
            return
        last = index
        yield index, frame


def _counted(source: str | bytes, timeline: Timeline, wanted: list[int]) -> Iterator[tuple]:
    """Yield the same by decoding and counting all frames: slow, but always right."""
    count, chosen = 0, set(wanted)
    for frame in _decode_all(source):
        if count in chosen:
            yield count, frame
        count += 1
    if count != timeline.count:
        raise UnreadableVideo(f"only {count} of {timeline.count} frames decode")


def _packets(container, stream) -> Iterator[av.Packet]:
    """Yield the packets from the current position to the end, then an empty one.

    Leaves out other empty ones, frames without bytes: decoding one would end the stream.
    """
    try:
        for packet in container.demux(stream):
            if packet.size or packet.pts is None:
                yield packet
    except IndexError:
        # PyAV fails on streams that begin later in the file (MPEG, FLV), but only after it has
        # returned all packets of this stream.
        return


def _decode_all(source: str | bytes) -> Iterator[av.VideoFrame]:
    """Yield every frame, in the order of display.

    The file is opened again: seeking cannot find a beginning that has no time of its own.
    """
    with _opened(source) as (container, stream):
        for packet in _packets(container, stream):
            yield from packet.decode()


def _first_frame(source: str | bytes) -> av.VideoFrame:
    frame = next(_decode_all(source), None)
    if frame is None:
        raise UnreadableVideo("no frames")
    return frame


def _decode(container, stream, times: set[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames from the next key frame on, in the order of display.

    Frames that are neither at the wanted `times` nor referred to by others are skipped, which
    does not change the others: a fifth more clips per second from H.264 with B-frames.
    """
    context = stream.codec_context
    started = False
    for packet in _packets(container, stream):
        started |= packet.is_keyframe
        if packet.is_corrupt or (packet.size and not started):
            continue
        context.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
        yield from packet.decode()


def _until(frames: Iterator[av.VideoFrame], time: int) -> av.VideoFrame | None:
    """Return the frame at that time; None if the decoder is past it."""
    for frame in frames:
        if frame.pts is not None and frame.pts >= time:
            return frame if frame.pts == time else None
    return None


def _picture(frame: av.VideoFrame, channels: int) -> np.ndarray:
    """Return one frame, upright: uint8 [H, W, channels], a view of FFmpeg's memory.

    Colours follow the matrix and the range that the file names. swscale uses its default
    interpolation: FAST_BILINEAR is no faster on even sizes, where both give the same bits, and
    wrong by up to 246 levels on odd ones. Its own threads would double the time.
    """
    plain = _without_fields(frame) if frame.interlaced_frame else frame
    picture = plain.to_ndarray(format=PIXEL_FORMATS[channels], threads=1)
    upright = _upright(picture, _display_matrix(frame))
    return upright if upright.ndim == 3 else upright[..., None]


def _without_fields(frame: av.VideoFrame) -> av.VideoFrame:
    """Return a copy that is not marked as interlaced.

    PyAV would interpolate the colours of each field by itself; the ffmpeg command, and the
    decoders beside PyAV, take the lines as they come.
    """
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.color_range, copy.colorspace = frame.color_range, frame.colorspace
    for new, old in zip(copy.planes, frame.planes, strict=True):
        lines = np.frombuffer(bytes(old), np.uint8).reshape(-1, old.line_size)
        padded = np.zeros((new.buffer_size // new.line_size, new.line_size), np.uint8)
        size = min(old.line_size, new.line_size)
        padded[:, :size] = lines[: len(padded), :size]
        new.update(padded.tobytes())
    return copy


def _display_matrix(frame: av.VideoFrame) -> Matrix:
    """Return a, b, c, d of the display matrix: a point (x, y) is shown at (ax + cy, bx + dy)."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # wrong stub
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d


def _mirrored(source: str | bytes, container) -> bool:
    """Return whether the display matrix mirrors: other decoders only turn."""
    if "mp4" not in container.format.name:  # nor can other containers say so
        return False
    matrix = _display_matrix(_first_frame(source))
    if matrix is None:
        return False
    a, b, c, d = matrix
    return a * d - b * c < 0


def _is_turned(matrix: Matrix) -> bool:
    """Return whether the nearest right angle of a matrix swaps width and height."""
    a, b, c, d = matrix or (1, 0, 0, 1)
    return abs(b) + abs(c) > abs(a) + abs(d)


def _upright(picture: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Turn and mirror [H, W, ...] as the matrix says, to the nearest right angle: a view."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if _is_turned(matrix):
        picture = picture.swapaxes(0, 1)
        a, d = c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
