"""Decoded videos that stay in main memory, where a small data set is read again and again."""

import threading
from collections.abc import Callable, Hashable

import numpy as np

# A longer video is decoded around each clip as without a memory: whole, it might not fit.
MAX_FRAMES = 1024


class FrameMemory:
    """Keeps whole videos up to `budget` bytes, and reads clips of them.

    What is kept first stays: clips are drawn uniformly, so that to drop one video for another
    would gain nothing. Clips are the same whether a video is kept or not.
    """

    def __init__(self, *, budget: int):
        self._budget = self._free = budget
        self._kept: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def share(self, count: int) -> float:
        """Return the part of `count` videos that there is room for, judging by those kept."""
        used = self._budget - self._free
        return min(1.0, len(self._kept) * self._budget / (used * count)) if used else 0.0

    def read_clip(
        self, key: Hashable, read: Callable, choose: Callable[[int], np.ndarray]
    ) -> np.ndarray:
        """Return the frames of a video that `choose` picks: uint8 [F, H, W, C].

        read: (choose) -> frames, as `decode.read_clip`. key: names the video and its channels.
        Raises UnreadableVideo.
        """
        frames = self._kept.get(key)
        if frames is not None:
            return frames[choose(len(frames))]
        whole = self._free > 0

        def choose_whole(count):
            nonlocal whole
            whole &= count <= MAX_FRAMES
            return np.arange(count) if whole else choose(count)

        frames = read(choose_whole)
        if not whole:
            return frames
        with self._lock:
            if frames.nbytes <= self._free and key not in self._kept:
                self._kept[key] = frames
                self._free -= frames.nbytes
        return frames[choose(len(frames))]
