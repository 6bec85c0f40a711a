"""Annotation and box files of action detection: the format is decided by the content."""

from pathlib import Path

import numpy as np

from videomae_jax.data.box_csv import is_box_csv, read_csv
from videomae_jax.data.box_json import read_json
from videomae_jax.data.box_pickle import read_pickle
from videomae_jax.data.box_table import Table
from videomae_jax.errors import UserError

JSON, PICKLE = (".json",), (".pkl", ".pickle")
ROUNDING = 1e-3  # by which a score may be above 1


def is_box_file(path: Path) -> bool:
    """Return whether a file holds boxes; otherwise it may be a list of videos."""
    return path.suffix.lower() in (*JSON, *PICKLE) or is_box_csv(path)


def read_table(path: Path, *, images: Path | None = None) -> Table:
    """Read the boxes of a file: csv, see `box_csv`; json, see `box_json`; or mmaction2's pickle.

    images: the annotations that have the moments of the image ids of a list of detections. Raises
    UserError for a file in none of these formats, for bad rows, and if there are none.
    """
    try:
        if path.suffix.lower() in JSON:
            table = read_json(path, images=images)
        elif path.suffix.lower() in PICKLE:
            table = read_pickle(path)
        else:
            table = read_csv(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not table.names:
        raise UserError(f"{path} has no boxes and no key frames")
    if table.scores is not None:
        wrong = np.flatnonzero(~((table.scores >= 0) & (table.scores <= 1 + ROUNDING)))
        if len(wrong):
            row = wrong[0]
            raise UserError(
                f"{path} row {table.lines[row]}: score {table.scores[row]:g}: use 0 to 1"
            )
    return table
