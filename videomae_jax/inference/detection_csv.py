"""The csv of detections that the evaluators of AVA read."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from videomae_jax.errors import UserError


class DetectedBox(NamedTuple):
    """A box at a second of a video: x1, y1, x2, y2 as fractions, and the score of each class."""

    video: str
    second: str  # as the file of the boxes counts
    box: Sequence[float]
    scores: Iterable[float]


def write_detections(path: str | os.PathLike[str], boxes: Iterable[DetectedBox]) -> None:
    """Write a row for each box and class.

    The columns are video, second, x1, y1, x2, y2, class id (from 1) and score; there is no header.
    Raises UserError if the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # A name may hold bytes that are no text.
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file, lineterminator="\n")
            for video, second, box, scores in boxes:
                moment = [video, second, *(f"{corner:.6f}" for corner in box)]
                table.writerows([*moment, label, f"{s:.6f}"] for label, s in enumerate(scores, 1))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
