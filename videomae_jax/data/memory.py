"""Decoded videos that stay in main memory, where a small data set is read again and again."""

import threading
from collections.abc import Callable

import numpy as np

# A longer video is decoded around each clip as without a memory: whole, it might not fit.
MAX_FRAMES = 1024


class FrameMemory:
    """Reads clips as `decode.read_clip` does, and keeps whole videos up to `budget` bytes.

    What is kept first stays: clips are drawn uniformly, so that to drop one video for another
    would gain nothing. Clips are the same whether a video is kept or not.
    """

    def __init__(self, *, budget: int):
        self._free = budget
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def read_clip(
        self, path: str, choose: Callable[[int], np.ndarray], *, channels: int, decoder: str
    ) -> np.ndarray:
        """Return the chosen frames, uint8 [F, H, W, channels]. Raises UnreadableVideo."""
        # PyAV is only needed where videos are read.
        from videomae_jax.data.decode import read_clip

        frames = self._kept.get((path, channels))
        if frames is not None:
            return frames[choose(len(frames))]
        whole = self._free > 0

        def choose_whole(count):
            nonlocal whole
            whole &= count <= MAX_FRAMES
            return np.arange(count) if whole else choose(count)

        frames = read_clip(path, choose_whole, channels=channels, decoder=decoder)
        if not whole:
            return frames
        with self._lock:
            if frames.nbytes <= self._free and (path, channels) not in self._kept:
                self._kept[path, channels] = frames
                self._free -= frames.nbytes
        return frames[choose(len(frames))]
