"""Read the sizes, durations and frame times of many videos at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from videomae_jax.data.retry import retry
from videomae_jax.data.storage import UnreadableVideo
from videomae_jax.data.videos import ClipReader

# Videos read at once: most of the time is spent waiting for the disk.
READERS = 8

Value = TypeVar("Value")


def read_sizes(
    paths: Iterable[str], reader: ClipReader | None = None
) -> dict[str, tuple[int, int]]:
    """Return the height and the width of each video that can be read, in the order of `paths`.

    reader: of videos that are not files.
    """
    from videomae_jax.data.decode import read_size

    return _read_each(reader.size if reader else read_size, paths)


def read_durations(paths: Iterable[str]) -> dict[str, float]:
    """Return the duration in seconds that each readable video file states."""
    from videomae_jax.data.decode import read_duration

    return _read_each(read_duration, paths)


def read_frame_times(paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the frame times of each readable video file, see `decode.open_frames`."""
    from videomae_jax.data.decode import read_seconds

    return _read_each(read_seconds, paths)


def _read_each(read: Callable[[str], Value], paths: Iterable[str]) -> dict[str, Value]:
    """Return what `read` returns for each path, without the videos that cannot be read."""

    def attempt(path: str) -> Value | None:
        try:
            return retry(lambda: read(path))
        except UnreadableVideo:
            return None

    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(READERS) as pool:
        found = zip(distinct, pool.map(attempt, distinct), strict=True)
        return {path: value for path, value in found if value is not None}
