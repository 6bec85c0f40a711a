"""Csv files of boxes -> `box_table.Table`.

Without a header they have the columns of AVA: video, second, x1, y1, x2, y2, action, person. If the
last column has numbers with a decimal point, they are scores of a person detector, as SlowFast
writes them. AVA-Kinetics has no person. Rows of two columns are key frames without boxes. With a
header, columns are in any order.
"""

import csv
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from videomae_jax.data.box_table import CORNERS, Table
from videomae_jax.data.text_files import read_text, split_lines
from videomae_jax.errors import UserError, did_you_mean

# Columns of a csv with a header, and their other names.
COLUMNS = {
    "video": ("video_id",),
    "timestamp": ("second",),
    "frame": (),
    **dict.fromkeys(CORNERS, ()),
    "action": ("action_id", "label"),
    "person": ("person_id",),
    "score": (),
}
# Bytes that are read to distinguish an annotation file from a list of videos.
SAMPLED = 1 << 16
SHOWN = 200  # characters of a bad row in an error: an open quote joins many rows
# pandas writes whole numbers as 2.0 if one of the column is missing.
_WHOLE = re.compile(r"(-?\d{1,18})(?:\.0*)?")


def is_box_csv(path: Path) -> bool:
    """Return whether a file is a csv of boxes; otherwise it may be a video or a list of videos."""
    text = read_text(path, strict=False, size=SAMPLED)
    try:
        rows = _read_rows(text)[1]
    except csv.Error:
        return False
    names = {name.strip().lower() for name in rows[0]} if rows else set()
    return set(CORNERS) <= names or any(map(_has_corners, rows))


def read_csv(path: Path) -> Table:
    """Read a csv with or without a header. Raises UserError for bad rows."""
    try:
        lines, rows = _read_rows(read_text(path))
    except csv.Error as error:
        raise UserError(f"{path}: {error}: is a quote not closed?") from None
    if not rows:
        raise UserError(f"{path} is empty: an annotation file has one box a line")
    first = rows[0]
    if len(first) == 2 and not _is_number(first[1]):
        raise UserError(
            f"{path} line {lines[0]}: second {first[1]!r} is not a number; a list of videos with "
            "labels has no boxes"
        )
    if _has_corners(first) or len(first) == 2:
        return _read_plain(path, lines, rows)
    return _read_named(path, lines, rows)


def _read_rows(text: str) -> tuple[list[int], list[list[str]]]:
    """Return the lines, from 1, and the cells of all rows that are not blank. Raises csv.Error."""
    # Spreadsheets write semicolons where the comma is the decimal sign.
    first = next(filter(str.strip, split_lines(text)), "")
    delimiter = next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.reader(split_lines(text), delimiter=delimiter, skipinitialspace=True)
    lines: list[int] = []
    rows: list[list[str]] = []
    for row in reader:
        if any(map(str.strip, row)):
            lines.append(reader.line_num)
            rows.append(row)
    return lines, rows


def _has_corners(row: Sequence[str]) -> bool:
    return len(row) in (6, 7, 8) and all(map(_is_number, row[1:6]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_plain(path: Path, lines: list[int], rows: list[list[str]]) -> Table:
    """Read a csv without a header, with 8, 7, 6 or 2 columns."""
    for line, row in zip(lines, rows, strict=True):
        if len(row) not in (2, 6, 7, 8):
            raise UserError(
                f"{path} line {line} has {len(row)} columns, not 8 (video, second, x1, y1, x2, "
                f"y2, action, person or score), 7 (without the last) or 2: {','.join(row)[:SHOWN]}"
            )
    padded = itertools.zip_longest(*rows, fillvalue="")
    columns = [list(map(str.strip, column)) for column in padded]
    width = len(columns)
    actions = columns[6] if width > 6 else [""] * len(rows)
    last: list[str] = columns[7] if width == 8 else []
    # A file of 7 columns has either actions or scores.
    if width == 7 and _are_scores(actions):
        actions, last = [""] * len(rows), actions
    scored = _are_scores(last)
    return Table(
        kind="csv of predicted boxes" if scored else f"AVA csv of {width} columns",
        lines=np.array(lines),
        names=columns[0],
        moments=_floats(columns[1], lines, path, "second"),
        corners=_corners(columns[2:6] if width > 2 else [[""] * len(rows)] * 4, lines, path),
        actions=actions,
        persons=_persons([] if scored else last, lines, path),
        scores=_floats(last, lines, path, "score", empty=1.0) if scored else None,
    )


def _read_named(path: Path, lines: list[int], rows: list[list[str]]) -> Table:
    """Read a csv with a header."""
    names = {other: name for name, others in COLUMNS.items() for other in (name, *others)}
    head = [cell.strip().lower() for cell in rows[0]]
    places: dict[str, int] = {}
    for place, cell in enumerate(head):
        if cell not in names:
            meant = did_you_mean(cell, names)
            raise UserError(
                f"{path} line {lines[0]}: column {cell!r} is not known{meant or ';'} a header "
                f"has {', '.join(COLUMNS)}, a row without a header 8, 7 or 2 columns, as AVA"
            )
        places[names[cell]] = place
    moment = "frame" if "frame" in places else "timestamp"
    missing = [name for name in ("video", moment, *CORNERS) if name not in places]
    if missing:
        raise UserError(f"{path} line {lines[0]} has no column {missing[0]!r}: {','.join(head)}")
    lines, rows = lines[1:], rows[1:]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(head):
            raise UserError(
                f"{path} line {line} has {len(row)} columns, the header {len(head)}: "
                f"{','.join(row)[:SHOWN]}; put names with commas in quotes"
            )

    def column(name: str) -> list[str]:
        place = places.get(name)
        return [] if place is None else [row[place].strip() for row in rows]

    scores = column("score")
    return Table(
        kind="csv with a header",
        lines=np.array(lines, np.int64),
        names=column("video"),
        moments=_floats(column(moment), lines, path, moment),
        corners=_corners([column(name) for name in CORNERS], lines, path),
        actions=column("action") or [""] * len(rows),
        persons=_persons(column("person"), lines, path),
        scores=_floats(scores, lines, path, "score", empty=1.0) if scores else None,
        by_frame=moment == "frame",
    )


def _are_scores(cells: list[str]) -> bool:
    """Return whether numbers are scores. Ids have no decimal point, or are like 7.0."""
    filled = list(filter(None, cells))
    if not any("." in cell for cell in filled):
        return False
    return not all(map(_WHOLE.fullmatch, filled)) or max(map(float, filled)) <= 1


def _floats(
    cells: list[str],
    lines: list[int],
    path: Path,
    name: str,
    *,
    empty: float | None = None,
) -> np.ndarray:
    """Return finite numbers, float64 [n].

    empty: the value of empty cells, NaN or a number; None does not allow them.
    """
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            values[row] = float(cell) if cell or empty is None else empty
        except ValueError:
            raise UserError(f"{path} line {lines[row]}: {name} {cell!r} is not a number") from None
    wrong = ~np.isfinite(values)
    if empty is not None and np.isnan(empty):
        wrong = np.isinf(values)
    bad = np.flatnonzero(wrong).tolist()
    if bad:
        raise UserError(f"{path} line {lines[bad[0]]}: {name} {cells[bad[0]]!r} is not a number")
    return values


def _corners(columns: list[list[str]], lines: list[int], path: Path) -> np.ndarray:
    """Return corners float64 [n, 4], NaN in all four if all of them are empty."""
    values = [
        _floats(cells, lines, path, name, empty=np.nan)
        for name, cells in zip(CORNERS, columns, strict=True)
    ]
    corners = np.stack(values, axis=1)
    partly = np.flatnonzero(np.isnan(corners).any(axis=1) & ~np.isnan(corners).all(axis=1))
    if len(partly):
        raise UserError(f"{path} line {lines[partly[0]]} lacks some of the corners x1, y1, x2, y2")
    return corners


def _persons(cells: list[str], lines: list[int], path: Path) -> np.ndarray:
    """Return the ids of persons, int64 [n]; names are numbered in order of appearance."""
    if not cells:
        return np.full(len(lines), -1)
    numbers: dict[str, int] = {}
    whole = all(_WHOLE.fullmatch(cell) for cell in cells if cell)
    values = []
    for cell in cells:
        if not cell:
            values.append(-1)
        elif whole:
            values.append(int(cell.partition(".")[0]))
        else:
            values.append(numbers.setdefault(cell, len(numbers)))
    return np.array(values, np.int64)
