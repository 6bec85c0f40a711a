"""Frames -> files that decode fast: short mp4 files, or one JPEG file for each frame."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

# Frames per group of pictures. On average a seek decodes half a group for nothing; shorter groups
# make larger files.
GROUP = 16
# Consecutive frames that no other frame refers to. A clip of every fourth frame decodes one of
# three of them: `decode` skips frames that are neither wanted nor referred to.
UNREFERRED = 3


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
