"""Decoded videos that stay in main memory, where a small data set is read again and again."""

import threading
from collections.abc import Callable

import numpy as np

# A longer video is decoded around each clip as without a memory: whole, it might not fit.
MAX_FRAMES = 1024


class FrameMemory:
    """Keeps whole videos up to `budget` bytes, and reads clips of them.

    What is kept first stays: clips are drawn uniformly, so that to drop one video for another
    would gain nothing. Clips are the same whether a video is kept or not.
    """

    def __init__(self, *, budget: int):
        self._free = budget
        self._kept: dict[tuple[Callable, str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def read_clip(
        self, read: Callable, path: str, choose: Callable[[int], np.ndarray], *, channels: int
    ) -> np.ndarray:
        """Return the chosen frames, uint8 [F, H, W, channels]. Raises UnreadableVideo.

        read: `decode.read_clip`, or that of a source: two may have videos of the same name.
        """
        key = read, path, channels
        frames = self._kept.get(key)
        if frames is not None:
            return frames[choose(len(frames))]
        whole = self._free > 0

        def choose_whole(count):
            nonlocal whole
            whole &= count <= MAX_FRAMES
            return np.arange(count) if whole else choose(count)

        frames = read(path, choose_whole, channels=channels)
        if not whole:
            return frames
        with self._lock:
            if frames.nbytes <= self._free and key not in self._kept:
                self._kept[key] = frames
                self._free -= frames.nbytes
        return frames[choose(len(frames))]
