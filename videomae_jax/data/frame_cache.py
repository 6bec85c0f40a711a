"""A cache of decoded videos in main memory, for small data sets that are read many times."""

import threading
from collections.abc import Callable, Hashable

import numpy as np

from videomae_jax.data.sampling import ByTime, Choose, make_choice

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
        self._seconds: dict[Hashable, np.ndarray] = {}  # of the frames of a video, if by time
        self._large: set[Hashable] = set()  # keys of videos that did not fit
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
        read: Callable[[Choose], np.ndarray],
        choose: Choose,
    ) -> np.ndarray:
        """Return the frames of a video that `choose` picks: uint8 [F, H, W, C].

        read: (choose) -> frames, as `decode.read_clip`. key: the video, its channels, and whether
        frames are chosen by time. Raises UnreadableVideo.
        """
        frames = self._kept.get(key)
        if frames is not None:
            return frames[make_choice(choose, len(frames), lambda: self._seconds[key])]
        whole = self._free > 0 and key not in self._large
        seconds = np.empty(0)

        def choose_whole(count: int) -> np.ndarray:
            nonlocal whole
            whole &= count <= MAX_FRAMES
            return np.arange(count) if whole else make_choice(choose, count, lambda: seconds)

        def choose_whole_by_time(times: np.ndarray) -> np.ndarray:
            nonlocal seconds
            seconds = times
            return choose_whole(len(times) - 1)

        timed = isinstance(choose, ByTime)
        frames = read(ByTime(choose_whole_by_time) if timed else choose_whole)
        if not whole:
            return frames
        with self._lock:
            if frames.nbytes > self._free:
                self._large.add(key)
            elif key not in self._kept:
                self._seconds[key] = seconds
                self._kept[key] = frames
                self._free -= frames.nbytes
        return frames[make_choice(choose, len(frames), lambda: seconds)]
