"""Frame mAP of boxes with actions, in the three ways that published numbers are computed.

All three count a detection as right if its IoU with an annotated box of its class is 0.5 or more,
and average the average precision of the classes that have annotations. It is interpolated
(`metrics.average_precision`), unlike that of several labels a video (`metrics.class_precisions`).
They differ in what happens to key frames without annotations, and are named after who uses them:

published: VideoMAE, AlphAction and SlowFast, so most papers. Detections of key frames without
    annotations are wrong. Excluded key frames do not count.
official: the current evaluator of the ActivityNet challenge. Of each key frame only the 50 best
    pairs of a box and a class count, and only key frames that the annotations list.
mmaction2: key frames with annotations of an evaluated class only, scores from 0.002 on, scores
    and corners rounded to 4 decimals. A class that is never detected is left out of the mean.
    The annotations of excluded key frames count as missed.

Of equal scores, the one of the lower key frame is ranked higher, then that of the box with the
smaller corners, so that results do not depend on any order of rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.metrics import average_precision, mean_precision

PROTOCOLS = ("published", "official", "mmaction2")
IOU = 0.5
MOST = 50  # pairs of a box and a class of a key frame in the official protocol
LEAST = 0.002  # score in the protocol of mmaction2

# Of the 80 classes of AVA, by id from 1 on: the groups that papers report, and the 60 that count.
AVA_GROUPS = {
    "person movement": range(1, 15),
    "object manipulation": range(15, 64),
    "person interaction": range(64, 81),
}
AVA_EVALUATED = (
    *(1, *range(3, 16), 17, 20, 22, 24, *range(26, 31), 34, *range(36, 39), 41, 43),
    *(*range(45, 50), 51, 52, 54, *range(56, 71), *range(72, 75), *range(76, 81)),
)


class Boxes(NamedTuple):
    """Boxes of key frames, with a value of each box in each class.

    frames: int64 [n], the number of the key frame of each box. boxes: [n, 4], x1, y1, x2, y2
    as fractions of width and height. values: [n, K]: of annotations bool, whether the box has
    the class; of detections scores, NaN for a class in which the box was not detected.
    """

    frames: np.ndarray
    boxes: np.ndarray
    values: np.ndarray


class ClassPrecision(NamedTuple):
    """The average precision of one class, 0 to 1; NaN if it does not count in the mean.

    label: its index among all classes. annotated: boxes that have it. detected: boxes with a
    score that counts.
    """

    label: int
    precision: float
    annotated: int
    detected: int


class MeanPrecision(NamedTuple):
    """The mean over classes, 0 to 1, and the precision of each class."""

    value: float
    classes: list[ClassPrecision]  # the evaluated ones


def mean_average_precision(
    truth: Boxes,
    found: Boxes,
    *,
    protocol: str = "published",
    evaluated: Sequence[int] | None = None,
    listed: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> MeanPrecision:
    """Return the mean average precision of detections.

    truth, found: annotations and detections, in any order. protocol: see the module. evaluated:
    labels of the classes that count; None: all. listed: numbers of the key frames in the
    annotation file, also of those without boxes; None: those of `truth`. excluded: numbers of key
    frames that are left out.
    Raises UserError for an unknown protocol, for excluded key frames in the official one, which
    has none, and if no class has an annotation.
    """
    check_protocol(protocol, excluded=excluded is not None and len(excluded) > 0)
    labels = list(range(truth.values.shape[1])) if evaluated is None else list(evaluated)
    truth, found = (
        _sort(boxes._replace(values=boxes.values[:, labels])) for boxes in (truth, found)
    )
    frames = int(max(part.max(initial=-1) for part in (truth.frames, found.frames))) + 1
    kept = ~_among(frames, excluded)
    counts = truth.values[kept[truth.frames]].sum(axis=0)
    if protocol == "official":
        kept = _among(frames, truth.frames if listed is None else listed)
        kept |= _among(frames, truth.frames)
        found = found._replace(values=_best(found, most=MOST))
    elif protocol == "mmaction2":
        counts = truth.values.sum(axis=0)
        kept &= _among(frames, truth.frames[truth.values.any(axis=1)])
        found = _rounded(found)
    if not counts.any():
        raise UserError("no box has an action among the classes that are evaluated")
    x1, y1, x2, y2 = found.boxes.T
    found = _pick(found, kept[found.frames] & (x1 < x2) & (y1 < y2))
    detection, box = _overlaps(truth, found, frames=frames)
    classes = []
    for label, annotated, own, scores in zip(
        labels, counts.tolist(), truth.values.T, found.values.T, strict=True
    ):
        present = ~np.isnan(scores)
        right = _right(detection, box, own=own, scores=scores, present=present)
        detected = int(present.sum())
        precision = average_precision(scores[present], right[present], total=annotated)
        if protocol == "mmaction2" and not detected:
            precision = math.nan
        classes.append(ClassPrecision(label, precision, annotated, detected))
    return MeanPrecision(_mean(classes), classes)


def check_protocol(protocol: str, *, excluded: bool) -> None:
    """Raise UserError for an unknown protocol, or one that cannot leave key frames out."""
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is unknown: use {', '.join(PROTOCOLS)}")
    if protocol == "official" and excluded:
        raise UserError(
            "the official protocol has no list of excluded key frames: leave --excluded out, or "
            "use --protocol published"
        )


def _mean(classes: Sequence[ClassPrecision]) -> float:
    return mean_precision(np.array([score.precision for score in classes], np.float64))


def is_ava(names: Sequence[str]) -> bool:
    """Return whether class names are the 80 of AVA, in their order."""
    known = {0: "bend", 10: "sit", 11: "stand", 13: "walk", 79: "watch"}
    return len(names) == 80 and all(names[k].startswith(word) for k, word in known.items())


def group_precisions(classes: Sequence[ClassPrecision]) -> dict[str, float]:
    """Return the mean of each group of AVA's classes that has annotations."""
    groups = {
        name: _mean([score for score in classes if score.label + 1 in ids])
        for name, ids in AVA_GROUPS.items()
    }
    return {name: value for name, value in groups.items() if not math.isnan(value)}


def _sort(rows: Boxes) -> Boxes:
    """Sort by key frame and corners; later sorts are stable, so this orders equal scores."""
    boxes = np.asarray(rows.boxes, np.float64).reshape(-1, 4)
    order = np.lexsort((*boxes.T[::-1], rows.frames))
    return Boxes(np.asarray(rows.frames)[order], boxes[order], rows.values[order])


def _pick(rows: Boxes, which: np.ndarray) -> Boxes:
    return Boxes(*(column[which] for column in rows))


def _among(frames: int, numbers: np.ndarray | None) -> np.ndarray:
    """Return which key frames are among these numbers: bool [frames]."""
    return np.isin(np.arange(frames), [] if numbers is None else numbers)


def _rounded(found: Boxes) -> Boxes:
    """Round as a file of mmaction2 does, without scores that it does not write."""
    scores = found.values.astype(np.float32)
    scores = np.where(scores < LEAST, np.nan, scores.round(4))
    return Boxes(found.frames, found.boxes.astype(np.float32).round(4).astype(np.float64), scores)


def _best(found: Boxes, *, most: int) -> np.ndarray:
    """Return the scores with NaN for all but the `most` best of each key frame."""
    values = np.array(found.values, np.float64)
    starts, counts = np.unique(found.frames, return_index=True, return_counts=True)[1:]
    for count in np.unique(counts):  # key frames with the same number of boxes at once
        rows = starts[counts == count][:, None] + np.arange(count)
        scores = values[rows].reshape(len(rows), -1)
        worse = np.argsort(-scores, axis=1, kind="stable")[:, most:]
        np.put_along_axis(scores, worse, np.nan, axis=1)
        values[rows] = scores.reshape(len(rows), count, -1)
    return values


def _overlaps(truth: Boxes, found: Boxes, *, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (detection, annotation) of one key frame with an IoU of 0.5 or more.

    They are sorted by detection, then by falling IoU.
    """
    starts = np.searchsorted(truth.frames, np.arange(frames + 1))
    first, last = starts[found.frames], starts[found.frames + 1]
    counts = last - first
    detection = np.repeat(np.arange(len(counts)), counts)
    box = np.arange(len(detection)) + np.repeat(first - (counts.cumsum() - counts), counts)
    a, b = found.boxes[detection].T, truth.boxes[box].T
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    common = width.clip(0) * height.clip(0)
    union = _area(a) + _area(b) - common
    iou = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    order = np.lexsort((box, -iou, detection))
    order = order[iou[order] >= IOU]
    return detection[order], box[order]


def _area(corners: np.ndarray) -> np.ndarray:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _right(
    detection: np.ndarray,
    box: np.ndarray,
    *,
    own: np.ndarray,
    scores: np.ndarray,
    present: np.ndarray,
) -> np.ndarray:
    """Return which detections of a class are right, bool [n].

    detection, box: the pairs of `_overlaps`. own: which annotations have the class. A detection
    is only compared with the annotation of the class that it overlaps most; of all detections
    of one annotation, that of the highest score is right.
    """
    of_class = own[box] & present[detection]
    detection, box = detection[of_class], box[of_class]
    nearest = np.flatnonzero(np.diff(detection, prepend=-1))
    detection, box = detection[nearest], box[nearest]
    order = np.argsort(-scores[detection], kind="stable")
    _, best = np.unique(box[order], return_index=True)
    right = np.zeros(len(scores), bool)
    right[detection[order[best]]] = True
    return right
