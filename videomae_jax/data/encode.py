"""Frames -> bytes that decode fast: short mp4 files, or one JPEG picture each."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

# A seek decodes half a group of pictures in vain; shorter groups make larger files.
GROUP = 16
# Frames in a row that no other one refers to. A clip of every fourth frame decodes one of three
# such and leaves out the rest: `decode` skips what is neither wanted nor referred to.
UNREFERRED = 3


def shrink(frames: np.ndarray, *, short_side: int, even: bool) -> np.ndarray:
    """Resize frames uint8 [F, H, W, 3] until the short side is `short_side`; never enlarge.

    even: make both sides even, by a pixel less, as mp4 files need them.
    """
    high, wide = frames.shape[1:3]
    scale = min(1.0, short_side / min(high, wide))
    high, wide = max(1, round(high * scale)), max(1, round(wide * scale))
    if even:
        high, wide = max(2, high // 2 * 2), max(2, wide // 2 * 2)
    if (high, wide) == frames.shape[1:3]:
        return frames
    size, filter = (wide, high), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(f).resize(size, filter)) for f in frames])


def encode_jpegs(frames: np.ndarray, *, quality: int) -> list[bytes]:
    """Return a JPEG file for each frame of uint8 [F, H, W, 3]."""
    files = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return files


class Mp4Writer:
    """Collects frames into one H.264 file: a key frame every GROUP, fast to decode.

    quality: x264's constant rate factor, 0 (best) to 51. The frames get 30 a second: they
    are read by their number.
    """

    def __init__(self, *, height: int, width: int, quality: int):
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        options = {"crf": str(quality), "tune": "fastdecode", "preset": "medium", "threads": "1"}
        # As many B-frames as there may be, wherever, and none that others refer to. The tree of
        # macroblocks, with AVX-512, gives other bytes for the same frames every time.
        options["x264-params"] = "b-adapt=0:b-pyramid=none:mbtree=0"
        self._stream = self._container.add_stream("libx264", rate=30, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 30)
        self._stream.codec_context.gop_size = GROUP
        self._stream.codec_context.max_b_frames = UNREFERRED
        self._count = 0

    def add(self, frames: np.ndarray) -> None:
        """Append frames, uint8 [F, H, W, 3]."""
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = self._count, Fraction(1, 30)
            self._container.mux(self._stream.encode(frame))
            self._count += 1

    def finish(self) -> bytes:
        """Return the whole file."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()
