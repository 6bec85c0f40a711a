"""Write action detections as the evaluators of AVA read them."""

import csv
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from videomae_jax.paths import as_path, make_folder, to_write, writing


class ScoredBox(NamedTuple):
    """A box of a key frame: x1, y1, x2, y2 as fractions, and a score for each class.

    second: of the key frame, as in the annotations.
    """

    video: str
    second: float
    corners: Sequence[float]
    scores: Iterable[float]


def write_detections(path: str | os.PathLike[str], boxes: Iterable[ScoredBox]) -> None:
    """Write a row for each box and class, without a header, and make the folder.

    The columns are video, second, x1, y1, x2, y2, class id (from 1) and score. Raises UserError if
    the file cannot be written.
    """
    with writing(path):
        make_folder(as_path(path).parent)
        with (
            to_write(path) as local,
            open(local, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            for box in boxes:
                corners = [f"{corner:.6f}" for corner in box.corners]
                moment = [box.video, _format_second(box.second), *corners]
                table.writerows(
                    [*moment, number, f"{score:.6f}"] for number, score in enumerate(box.scores, 1)
                )


def _format_second(second: float) -> str:
    """Return 0902 for a whole second, as in the files of AVA, else up to 6 decimals."""
    if second == round(second):
        return f"{second:04.0f}"
    return f"{second:.6f}".rstrip("0")
