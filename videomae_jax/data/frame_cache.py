"""A cache of decoded videos in main memory, for small data sets that are read many times."""

import threading
from collections.abc import Callable, Hashable

import numpy as np

# Longer videos are never cached: decoding a whole one might not fit in memory.
MAX_FRAMES = 1024


class FrameMemory:
    """Caches whole videos, up to `budget` bytes of pixels, and reads clips from them.

    Nothing is evicted: clips are drawn uniformly, so replacing one video by another would gain
    nothing. Clips are the same whether a video is cached or not.
    """

    def __init__(self, *, budget: int):
        self._budget = budget
        self._free = budget
        self._kept: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def share(self, count: int) -> float:
        """Estimate the fraction of `count` videos that fits, from the size of those cached."""
        used = self._budget - self._free
        if not used:
            return 0.0
        return min(1.0, len(self._kept) * self._budget / (used * count))

    def read_clip(
        self,
        key: Hashable,
        read: Callable[[Callable[[int], np.ndarray]], np.ndarray],
        choose: Callable[[int], np.ndarray],
    ) -> np.ndarray:
        """Return the frames of a video that `choose` picks: uint8 [F, H, W, C].

        read: (choose) -> frames, as `decode.read_clip`. key: the video and its channels.
        Raises UnreadableVideo.
        """
        frames = self._kept.get(key)
        if frames is not None:
            return frames[choose(len(frames))]
        whole = self._free > 0

        def choose_whole(count: int) -> np.ndarray:
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
