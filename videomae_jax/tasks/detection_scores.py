"""Score the actions that a model finds in boxes against the annotations of key frames."""

from collections.abc import Iterable, Sequence

import numpy as np

from videomae_jax.data.class_lists import read_class_list
from videomae_jax.data.key_frames import Key, KeyFrames
from videomae_jax.detection_metrics import (
    AVA_EVALUATED,
    Boxes,
    MeanPrecision,
    is_ava,
    mean_average_precision,
)
from videomae_jax.errors import UserError, did_you_mean


def evaluated_labels(names: Sequence[str], classes: int, *, file: str = "") -> list[int]:
    """Return the labels of the classes that are scored.

    file: a list of them, see `class_lists`; "" takes the usual 60 of AVA's 80 classes, and all of
    other lists. Raises UserError for a class that is not among the names.
    """
    if not file:
        return [number - 1 for number in AVA_EVALUATED] if is_ava(names) else list(range(classes))
    chosen = read_class_list(file)
    known = list(names) or [str(number) for number in range(1, classes + 1)]
    for name in chosen.values():
        if name not in known:
            meant = did_you_mean(name, known)
            raise UserError(f"{file}: the model has no class {name!r}{meant}")
    return sorted(known.index(name) for name in chosen.values())


def box_scores(probabilities: np.ndarray, persons: np.ndarray, *, protocol: str) -> np.ndarray:
    """Return the scores by which boxes are ranked, [boxes, K].

    persons: [boxes], the scores of the person detector. mmaction2 ranks by the probabilities of
    the actions alone; the other protocols multiply them by these.
    """
    return probabilities if protocol == "mmaction2" else probabilities * persons[:, None]


def score_boxes(
    truth: KeyFrames,
    shown: KeyFrames,
    probabilities: np.ndarray,
    *,
    protocol: str = "published",
    evaluated: Sequence[int] | None = None,
    excluded: Iterable[Key] = (),
) -> MeanPrecision:
    """Return the frame mAP of the boxes that a model was shown.

    truth: annotations. shown: key frames with the boxes that the model was given.
    probabilities: float32 [boxes of shown, K]. protocol, evaluated: see `mean_average_precision`.
    excluded: key frames that do not count.
    """
    excluded = list(excluded)
    shown_keys, truth_keys = shown.keys, truth.keys
    numbers = {key: n for n, key in enumerate(sorted({*shown_keys, *truth_keys, *excluded}))}

    def numbered(keys: Sequence[Key]) -> np.ndarray:
        return np.array([numbers[key] for key in keys], np.int64)

    scores = box_scores(probabilities, shown.scores, protocol=protocol)
    return mean_average_precision(
        Boxes(np.repeat(numbered(truth_keys), truth.counts), truth.boxes, truth.targets),
        Boxes(np.repeat(numbered(shown_keys), shown.counts), shown.boxes, scores),
        protocol=protocol,
        evaluated=evaluated,
        listed=numbered(truth_keys),
        excluded=numbered(excluded),
    )
