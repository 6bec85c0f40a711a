"""The rows of an annotation or box file of action detection, whatever its format."""

from dataclasses import dataclass

import numpy as np

from videomae_jax.data.key_frames import Key, moment_key

CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of an annotation or box file.

    kind: the format, for people. lines: int64 [n], where each row is, from 1. names: ids or paths
    of the videos. moments: float64 [n], seconds, or the numbers of frames if `by_frame`. corners:
    float64 [n, 4], x1, y1, x2, y2, NaN for a key frame without a box. actions: names or ids, ""
    is none. persons: int64 [n], -1 is unknown. scores: float64 [n] of a person detector, None if
    the file has none.
    """

    kind: str
    lines: np.ndarray
    names: list[str]
    moments: np.ndarray
    corners: np.ndarray
    actions: list[str]
    persons: np.ndarray
    scores: np.ndarray | None
    by_frame: bool = False

    @property
    def keys(self) -> list[Key]:
        """The key of the moment of each row, see `KeyFrames.keys`."""
        return list(map(moment_key, self.names, self.moments.tolist()))
