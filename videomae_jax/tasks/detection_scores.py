"""Score the probabilities of boxes in key frames against their annotations."""

from collections.abc import Sequence

import numpy as np

from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.detection_metrics import (
    AVA_EVALUATED,
    Boxes,
    MeanPrecision,
    is_ava,
    mean_average_precision,
)

Key = tuple[str, float]  # the id of a video and the second, as annotation files write them


def frame_keys(frames: KeyFrames) -> list[Key]:
    """Return what identifies each key frame in annotations, detections and lists of them."""
    return [(name, round(stamp, 3)) for name, stamp in zip(frames.names, frames.stamps.tolist())]


def evaluated_labels(names: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Return the labels of the classes that count: the chosen ones, of AVA its 60, else all."""


def score_boxes(
    truth: KeyFrames,
    shown: KeyFrames,
    probabilities: np.ndarray,
    *,
    protocol: str = "published",
    evaluated: Sequence[int] | None = None,
    excluded: Sequence[Key] = (),
) -> MeanPrecision:
    """Return the frame mAP of the boxes that a model was shown.

    truth: annotations. shown: key frames with the boxes that were given to the model, whose
    coordinates are scored. probabilities: float32 [len(shown), M, K], of which the first
    `shown.counts` rows of each key frame are of its boxes. protocol, evaluated: see
    `mean_average_precision`. excluded: key frames that are left out.
    """
    shown_keys, truth_keys = frame_keys(shown), frame_keys(truth)
    numbers = {key: n for n, key in enumerate(sorted({*shown_keys, *truth_keys, *excluded}))}

    def numbered(keys: Sequence[Key]) -> np.ndarray:
        return np.array([numbers[key] for key in keys], np.int64)

    given = np.arange(probabilities.shape[1]) < shown.counts[:, None]
    scores = box_scores(probabilities[given], shown.scores, protocol=protocol)
    return mean_average_precision(
        Boxes(np.repeat(numbered(truth_keys), truth.counts), truth.boxes, truth.targets),
        Boxes(np.repeat(numbered(shown_keys), shown.counts), shown.boxes, scores),
        protocol=protocol,
        evaluated=evaluated,
        listed=numbered(truth_keys),
        excluded=numbered(excluded),
    )
