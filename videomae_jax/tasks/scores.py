"""How good predictions are: accuracies with their uncertainty, per class and in all."""

import math
from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
    """A share of `count` examples with its 95 % interval, all 0 to 1."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} - {self.high:.1%})".replace("%", " %")


def wilson(right: int, count: int) -> Share:
    """Return right / count with the interval of Wilson (1927), sound for few and for extremes."""
    z = 1.959964
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return Share(share, max(0.0, centre - half), min(1.0, centre + half), count)


def top(probabilities: np.ndarray, labels: np.ndarray, *, k: int) -> Share:
    """Return how many labels [n] are among the first k of [n, classes]; ties in class order."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    return wilson(int((order == labels[:, None]).any(axis=-1).sum()), len(labels))


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count examples by class (row) and prediction (column): int64 [classes, classes]."""
    classes = probabilities.shape[-1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=-1)), 1)
    return counts
