"""Write small videos whose every frame says its own number."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
ASIDE = 8  # pixels of a block


def numbered(index: int, *, width: int = 96, height: int = 64, shift: int = 0) -> np.ndarray:
    """A picture with `index` written as black and white blocks along its top: uint8 [H, W, 3]."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack(
        [(across * 2 + index * 3 + shift) % 200, (down * 3) % 200, (across + down) % 200], axis=-1
    ).astype(np.uint8)
    for bit in range(BITS):
        picture[:ASIDE, bit * ASIDE : (bit + 1) * ASIDE] = 255 * (index >> bit & 1)
    return picture


def number(picture: np.ndarray) -> int:
    """The number that `numbered` wrote into a picture [H, W, C]."""
    centre = ASIDE // 2
    blocks = picture[centre, centre : BITS * ASIDE : ASIDE].astype(float).mean(axis=-1)
    return sum(1 << bit for bit, level in enumerate(blocks) if level > 127)


def write_video(
    path,
    *,
    count: int = 40,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    times=None,
    options: dict | None = None,
    container_options: dict | None = None,
    shift: int = 0,
    pictures=None,
) -> str:
    """Write `count` numbered frames, and return the path.

    `times` are presentation times in 1/30 s, one for each frame; `shift` moves the
    background, so that two videos differ. `pictures`: uint8 [count, H, W, 3], instead of numbers.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, 30)
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        for index in range(count):
            if pictures is None:
                picture = numbered(index, width=width, height=height, shift=shift)
            else:
                picture = pictures[index]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if times is None else int(times[index])
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def write_classes(folder: Path, names: Iterable[str]) -> None:
    """Write videos of these names that differ, by turns in the sub-folders a and b."""
    for index, name in enumerate(names):
        (folder / "ab"[index % 2]).mkdir(exist_ok=True)
        path = folder / "ab"[index % 2] / name
        write_video(path, count=12 + index, b_frames=2, shift=17 * index)


def write_attributes(folder: Path, count: int) -> str:
    """Write videos of a square that may be red and may move, and their list; return its path.

    Of four videos, one is of no class, one "red", one "moving" and one both.
    """
    lines = []
    for index in range(count):
        red, moving = index % 2, index // 2 % 2
        pictures = np.full((16, 32, 32, 3), 40 + 3 * index, np.uint8)
        for frame, picture in enumerate(pictures):
            left = 4 + (5 * index + 8 * moving * frame) % 20
            picture[8:24, left : left + 8] = (230, 20, 20) if red else (20, 20, 230)
        write_video(folder / f"{index}.mp4", count=16, width=32, height=32, pictures=pictures)
        labels = ["red"] * red + ["moving"] * moving
        lines.append(f"{index}.mp4,{'|'.join(labels) or '|'}")
    (folder / "list.csv").write_text("\n".join(lines))
    return str(folder / "list.csv")


def write_sound(path) -> str:
    """Write half a second of silence without pictures, and return the path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 8000, 1000):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1000), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def turn(path, *, degrees: int) -> str:
    """Set the display matrix of an mp4 file to a clockwise turn, and return the path."""
    return set_display_matrix(path, *TURNS[degrees])


def set_display_matrix(path, a: int, b: int, c: int, d: int) -> str:
    """Set the display matrix of an mp4 file, (x, y) -> (ax + cy, bx + dy); return the path."""
    fixed = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data = bytearray(Path(path).read_bytes())
    # A version 0 track header has its matrix 40 bytes after the four letters and
    # the version: 4 + 4 + 4 + 4 + 4 + 4 + 8 + 2 + 2 + 2 + 2.
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in fixed)
    Path(path).write_bytes(data)
    return str(path)


def set_edit_list(path, *edits: tuple[int, int]) -> str:
    """Replace the edit list of an mp4 file that has none, and return the path.

    edits: (duration, start) in units of the movie and of the media; a start of -1 is a pause.
    """
    data = bytearray(Path(path).read_bytes())
    rows = b"".join(
        duration.to_bytes(4, "big") + start.to_bytes(4, "big", signed=True) + b"\0\1\0\0"
        for duration, start in edits
    )
    elst = b"elst" + bytes(4) + len(edits).to_bytes(4, "big") + rows
    elst = (len(elst) + 4).to_bytes(4, "big") + elst
    edts = (len(elst) + 8).to_bytes(4, "big") + b"edts" + elst
    end = data.index(b"mdia") - 4  # the edit list comes before it in its track
    data[end:end] = edts
    for name in (b"moov", b"trak"):  # which have grown; mdat is before them
        at = data.index(name) - 4
        size = int.from_bytes(data[at : at + 4], "big") + len(edts)
        data[at : at + 4] = size.to_bytes(4, "big")
    Path(path).write_bytes(data)
    return str(path)


def empty_frame(path, index: int) -> str:
    """Take the bytes of one frame out of an mp4 file of one chunk, and return the path."""
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"stsz") + 16
    sizes = np.frombuffer(data[at : at + 4 * int.from_bytes(data[at - 4 : at], "big")], ">u4")
    begin = data.index(b"mdat") + 4 + int(sizes[:index].sum())
    rest = data[begin + int(sizes[index]) : begin + int(sizes[index:].sum())]
    data[begin : begin + len(rest)] = rest
    data[at + 4 * index : at + 4 * index + 4] = bytes(4)
    Path(path).write_bytes(data)
    return str(path)


def write_broken(folder: Path) -> dict[str, str]:
    """Write unreadable files of every kind; return the reason (a pattern) of each path."""
    folder.mkdir(exist_ok=True)
    movie = Path(write_video(folder / "movie.mp4", b_frames=2)).read_bytes()
    front = write_video(folder / "front.mp4", container_options={"movflags": "faststart"})
    front = Path(front).read_bytes()
    for name in ("movie.mp4", "front.mp4"):
        (folder / name).unlink()
    contents = {
        "empty.mp4": (b"", "the file is empty"),
        "text.mp4": (b"dear diary, " * 99, "invalid data"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:9,\nhttp://localhost/a.ts\n", "invalid data"),
        "header.mp4": (movie[:30], "invalid data"),
        "middle.mp4": (movie[: len(movie) // 2], "invalid data"),
        "end.mp4": (front[: len(front) * 3 // 4], r"truncated: \d+ of 40 frames"),
    }
    reasons = {}
    for name, (data, reason) in contents.items():
        (folder / name).write_bytes(data)
        reasons[str(folder / name)] = reason
    (folder / "folder.mp4").mkdir()
    reasons[str(folder / "folder.mp4")] = "is a directory"
    reasons[str(folder / "missing.mp4")] = "no such file"
    reasons[write_sound(folder / "sound.mp4")] = "no video stream"
    return reasons
