"""Optional decoders besides PyAV: torchcodec and decord.

Each is a function (source, indices, count) -> uint8 [n, H, W, 3], upright; None if it fails or
finds another number of frames than `count`. They only decode: PyAV numbers the frames, and reads
files that the others would number differently, see `decode.read_clip`.
"""

import importlib
import io
from collections.abc import Callable

import numpy as np

from videomae_jax.errors import UserError

# Containers, by FFmpeg's names, in which these decoders agree with PyAV frame by frame. In AVI,
# MPEG streams and FLV they lose the last frames or return neighbouring ones.
CONTAINERS = ("mp4", "matroska")

Decoder = Callable[[str | bytes, list[int], int], np.ndarray | None]


def open_decoder(name: str) -> Decoder | None:
    """Return the decoder of that name, None for "pyav".

    Raises UserError for an unknown name and for a decoder that is not installed.
    """
    if name == "pyav":
        return None
    if name not in DECODERS:
        raise UserError(f"decoder {name!r} is not known: use pyav, {' or '.join(DECODERS)}")
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        # torchcodec raises RuntimeError for a missing FFmpeg, OSError for another torch.
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"decoder {name!r} cannot be imported ({reason}): pip install {name}, or use pyav"
        ) from None
    return DECODERS[name]


def _decord(source: str | bytes, indices: list[int], count: int) -> np.ndarray | None:
    import decord

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # By default a frame that does not decode would be a copy of its neighbour.
        reader = decord.VideoReader(file, num_threads=1, fault_tol=1e-9)
        return reader.get_batch(indices).asnumpy() if len(reader) == count else None
    except (decord.DECORDError, RuntimeError, IndexError):
        return None  # PyAV reads it, or reports the reason


def _torchcodec(source: str | bytes, indices: list[int], count: int) -> np.ndarray | None:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1)
        return decoder.get_frames_at(indices).data.numpy() if len(decoder) == count else None
    except (RuntimeError, ValueError, IndexError):
        return None  # as above


DECODERS = {"torchcodec": _torchcodec, "decord": _decord}
