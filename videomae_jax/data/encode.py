"""Frames -> files: short mp4 files that decode fast, JPEG files, and films to look at."""

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from videomae_jax.errors import UserError

# Frames per group of pictures. On average a seek decodes half a group for nothing; shorter groups
# make larger files.
GROUP = 16
# Consecutive frames that no other frame refers to. A clip of every fourth frame decodes one of
# three of them: `decode` skips frames that are neither wanted nor referred to.
UNREFERRED = 3
# Unit of the times in films, in seconds. Whole numbers of it are frames of 24, 25, 30, 60, 23.976,
# 29.97 or 59.94 a second, and milliseconds.
TICK = Fraction(1, 120_000)


def shrink(frames: np.ndarray, *, short_side: int, even: bool) -> np.ndarray:
    """Resize frames uint8 [F, H, W, 3] to a short side of `short_side` pixels; never enlarge.

    even: round both sides down to even numbers, as mp4 files need.
    """
    height, width = frames.shape[1:3]
    scale = min(1.0, short_side / min(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if even:
        height, width = max(2, height // 2 * 2), max(2, width // 2 * 2)
    if (height, width) == frames.shape[1:3]:
        return frames
    images = [
        Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
        for frame in frames
    ]
    return np.stack([np.asarray(image) for image in images])


def encode_jpegs(frames: np.ndarray, *, quality: int) -> list[bytes]:
    """Return a JPEG file for each frame of uint8 [F, H, W, 3]."""
    files = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return files


class Mp4Writer:
    """Encodes frames into one H.264 file with a key frame every GROUP frames, fast to decode.

    quality: x264's constant rate factor, 0 (best) to 51. The frame rate is always 30: frames are
    read by their index.
    """

    def __init__(self, *, height: int, width: int, quality: int):
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        options = {"crf": str(quality), "tune": "fastdecode", "preset": "medium", "threads": "1"}
        # Always the largest number of B-frames, and none that others refer to. With AVX-512,
        # macroblock-tree rate control gives other bytes for the same frames every time.
        options["x264-params"] = "b-adapt=0:b-pyramid=none:mbtree=0"
        self._stream = self._container.add_stream("libx264", rate=30, options=options)
        self._stream.height = height
        self._stream.width = width
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 30)
        self._stream.codec_context.gop_size = GROUP
        self._stream.codec_context.max_b_frames = UNREFERRED
        self._count = 0

    def add(self, frames: np.ndarray) -> None:
        """Append frames, uint8 [F, H, W, 3]."""
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = self._count
            frame.time_base = Fraction(1, 30)
            self._container.mux(self._stream.encode(frame))
            self._count += 1

    def finish(self) -> bytes:
        """Return the whole file."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()


class FilmWriter:
    """Writes frames of any times into an H.264 mp4 file that every player reads, one by one.

    rate: the mean frames per second. quality: x264's constant rate factor, 0 (best) to 51.
    pixel_aspect: the width of a pixel divided by its height. Odd sizes get one more column or
    row, a copy of the last: H.264 with 4:2:0 colours stores even sizes only. Use it in a `with`:
    the file gets its name when it is complete. Raises UserError if the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        height: int,
        width: int,
        rate: float,
        quality: int = 18,
        pixel_aspect: float = 1.0,
    ):
        self._path = Path(path)
        self._draft = self._path.with_name(f".{self._path.name}")
        self._padding = [(0, height % 2), (0, width % 2), (0, 0)]
        # The file is opened when the first frame is written.
        address = f"file:{self._draft}"  # else a name with a colon would be one
        options = {"movflags": "faststart"}
        self._container = av.open(address, "w", format="mp4", options=options)
        self._stream = self._container.add_stream(
            "libx264",
            rate=Fraction(rate).limit_denominator(1001),
            options={"crf": str(quality)},
        )
        self._stream.height = height + height % 2
        self._stream.width = width + width % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = TICK
        context.flags |= Flags.frame_duration  # else the last frame has that of `rate`
        context.sample_aspect_ratio = Fraction(pixel_aspect).limit_denominator(1000)
        # Without the name of a matrix, players guess one by the size of the picture.
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = Colorspace.ITU709
        context.color_trc = Colorspace.ITU709

    def add(self, picture: np.ndarray, *, start: float, end: float) -> None:
        """Append a frame, uint8 [H, W, 3], shown from `start` to `end` in seconds."""
        picture = np.pad(picture, self._padding, mode="edge")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = round(start / TICK), TICK
        frame.duration = round(end / TICK) - frame.pts
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from None

    def __enter__(self) -> "FilmWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                self._draft.replace(self._path)
        except (av.error.FFmpegError, OSError) as error:
            if kind is None:  # else an earlier error is on its way
                raise self._failure(error) from None
        finally:
            self._draft.unlink(missing_ok=True)

    def _failure(self, error: Exception) -> UserError:
        return UserError(f"cannot write {self._path}: {getattr(error, 'strerror', None) or error}")
