"""Accuracies with intervals, average precision, confusion matrices and nearest neighbours."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError


@dataclass(frozen=True)
class Proportion:
    """A fraction of `count` examples with its 95 % interval, `low` to `high`, all 0 to 1."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} - {self.high:.1%})".replace("%", " %")


def wilson(right: int, count: int) -> Proportion:
    """Return right / count with the interval of Wilson (1927).

    It is also accurate for few examples and for fractions near 0 and 1.
    """
    z = 1.959964
    fraction = right / count
    centre = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(fraction * (1 - fraction) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return Proportion(fraction, max(0.0, centre - half), min(1.0, centre + half), count)


def top(probabilities: np.ndarray, labels: np.ndarray, *, k: int) -> Proportion:
    """Return the top-k accuracy of probabilities [n, classes] for labels [n].

    Of equal probabilities, the first class ranks higher.
    """
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    return wilson(int((order == labels[:, None]).any(axis=-1).sum()), len(labels))


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count examples by class (row) and prediction (column): int64 [classes, classes]."""
    classes = probabilities.shape[-1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=-1)), 1)
    return counts


def average_precision(
    scores: np.ndarray, relevant: np.ndarray, *, total: int | None = None
) -> float:
    """Return the area under the interpolated precision-recall curve of a ranked list, 0 to 1.

    scores: [n]. relevant: bool [n]. total: number of relevant examples, with those that are not
    in the list; None: all are in it. The precision at a recall is the highest one at this or a
    larger recall, and every point of the curve counts (the rule of VOC 2010). This is the
    definition of action detection; that of several labels a video is `class_precisions`. Of equal
    scores, the first is ranked higher. NaN if nothing is relevant, 0 for an empty list. Computed
    in float64.
    """
    total = int(relevant.sum()) if total is None else total
    if not total:
        return math.nan
    hits = np.asarray(relevant, bool)[np.argsort(-np.asarray(scores), kind="stable")]
    ranks = np.flatnonzero(hits) + 1  # recall only changes at hits
    precision = np.arange(1, len(ranks) + 1) / ranks
    return float(np.maximum.accumulate(precision[::-1]).sum() / total)


def class_precisions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each class: float64 [classes], NaN if it has no example.

    probabilities: [n, classes]. labels: bool [n, classes]. Each class ranks all examples; those
    with equal probabilities count together. Not interpolated, unlike `average_precision`: the
    definition of `average_precision_score` in scikit-learn and of the Charades challenge.
    """
    return np.array([_precision(*column) for column in zip(probabilities.T, labels.T, strict=True)])


def _precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    if not relevant.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=math.nan))  # of equal scores
    hits = np.cumsum(relevant[order])[last]
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / (last + 1)).sum())


def mean_precision(precisions: np.ndarray) -> float:
    """Return the mean average precision over the classes that have one, NaN if none has."""
    found = precisions[~np.isnan(precisions)]
    return float(found.mean()) if len(found) else math.nan


def hit(probabilities: np.ndarray, labels: np.ndarray) -> Proportion:
    """Return how often the most probable class is one of the labels, bool [n, classes].

    Counts the examples that have a label; there must be one.
    """
    right = np.take_along_axis(labels, probabilities.argmax(axis=-1)[:, None], axis=-1)
    return wilson(int(right.sum()), int(labels.any(axis=-1).sum()))


TEMPERATURE = 0.07  # as in Wu et al. (2018)
CHUNK = 256  # queries that are compared with the whole bank at once


def neighbour_votes(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    ks: tuple[int, ...],
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """Return the fraction of votes of each class, for each k: {k: float32 [q, classes]}.

    bank, queries: features [n, D] and [q, D]. labels: int32 [n], of the bank; the classes are 0
    to the largest label. The k vectors of the bank with the highest cosine similarity vote with
    weight exp(similarity / temperature); of equal ones, the first is taken. Raises UserError
    for an impossible k or temperature.
    """
    check_neighbours(ks, temperature=temperature, bank=len(bank))
    vote = functools.partial(
        _votes,
        _directions(bank),
        jnp.asarray(labels),
        temperature=temperature,
        ks=tuple(ks),
        classes=int(labels.max()) + 1,
    )
    units = _directions(queries)
    chunks = [jax.device_get(vote(units[i : i + CHUNK])) for i in range(0, len(units), CHUNK)]
    votes = np.concatenate(chunks, axis=1)
    return dict(zip(ks, votes, strict=True))


def check_neighbours(ks: tuple[int, ...], *, temperature: float = TEMPERATURE, bank: int) -> None:
    """Raise UserError unless 1 <= k <= bank for every k, and the temperature is above 0."""
    for k in ks:
        if not 1 <= k <= bank:
            raise UserError(
                f"k {k}: there are {bank} labelled training videos to compare with, use 1 to {bank}"
            )
    if not temperature > 0:  # so that NaN is refused too
        raise UserError(f"temperature {temperature:g}: use above 0, such as {TEMPERATURE}")


@functools.partial(jax.jit, static_argnames=("ks", "classes"))
def _votes(
    bank: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    *,
    temperature: float,
    ks: tuple[int, ...],
    classes: int,
) -> jax.Array:
    """Return the fractions of votes, [len(ks), q, classes], of unit vectors."""
    similarity = jnp.matmul(queries, bank.T, precision="highest")
    nearest, positions = jax.lax.top_k(similarity, max(ks))
    # Relative to the nearest, of weight 1: the same ratios, and at no temperature all 0.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
    votes = weights[..., None] * jax.nn.one_hot(labels[positions], classes)
    votes = jnp.stack([votes[:, :k].sum(axis=1) for k in ks])
    return votes / votes.sum(axis=-1, keepdims=True)


def _directions(features: np.ndarray) -> jax.Array:
    """Return features [n, D] scaled to unit length, float32."""
    vectors = jnp.asarray(features, jnp.float32)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)
