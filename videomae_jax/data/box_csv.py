"""Csv files of boxes -> `box_table.Table`.

Without a header they are as AVA writes them: video, second, x1, y1, x2, y2, action, person. If
numbers with a decimal point are in the place of the person, they are scores of a person detector,
as SlowFast writes them. AVA-Kinetics has no person. Rows of two columns are key frames without
boxes. With a header, columns are in any order.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from videomae_jax.data.box_table import CORNERS, Table
from videomae_jax.data.manifest import split_lines
from videomae_jax.errors import UserError

# Columns of a csv with a header, and other names of them.
COLUMNS = {
    "video": ("video_id",),
    "timestamp": ("second",),
    "frame": (),
    **dict.fromkeys(CORNERS, ()),
    "action": ("action_id", "label"),
    "person": ("person_id",),
    "score": (),
}
# Rows that are looked at to tell an annotation file from a list of videos.
SAMPLED = 1000


def is_box_csv(path: Path) -> bool:
    """Return whether a text file holds boxes; otherwise it may be a list of videos."""
    rows = [row for _, (_, row) in zip(range(SAMPLED), _rows(_read_text(path)), strict=False)]
    names = {name.strip().lower() for name in rows[0]} if rows else set()
    return set(CORNERS) <= names or any(map(_has_corners, rows))


def read_csv(path: Path) -> Table:
    """Read a csv with or without a header. Raises UserError for bad rows."""
    rows = list(_rows(_read_text(path)))
    if not rows:
        raise UserError(f"{path} is empty: an annotation file has one box a line")
    line, first = rows[0]
    if len(first) == 2 and not _is_number(first[1]):
        raise UserError(
            f"{path} line {line}: second {first[1]!r} is not a number; a list of videos with "
            "labels has no boxes"
        )
    if _has_corners(first) or len(first) == 2:
        return _read_plain(path, rows)
    return _read_named(path, rows)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of every line that is not blank."""
    lines = split_lines(text)
    # Spreadsheets write semicolons where the comma is the decimal sign.
    first = next(filter(str.strip, lines), "")
    delimiter = next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _has_corners(row: Sequence[str]) -> bool:
    return len(row) in (6, 7, 8) and all(map(_is_number, row[1:6]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_plain(path: Path, rows: list[tuple[int, list[str]]]) -> Table:
    """Read a csv without a header, with 8, 7, 6 or 2 columns."""
    widths = {len(row) for _, row in rows}
    for line, row in rows:
        if len(row) not in (2, 6, 7, 8):
            raise UserError(
                f"{path} line {line} has {len(row)} columns, not 8 (video, second, x1, y1, x2, "
                f"y2, action, person or score), 7 (without the last) or 2: {','.join(row)}"
            )
    width = max(widths)
    padded = [row + [""] * (width - len(row)) for _, row in rows]
    columns = [[cell.strip() for cell in column] for column in zip(*padded, strict=True)]
    actions = columns[6] if width > 6 else [""] * len(rows)
    last: list[str] = columns[7] if width == 8 else []
    # Ids have no decimal point. A file of 7 columns has either actions or scores.
    if width == 7 and any("." in cell for cell in actions):
        actions, last = [""] * len(rows), actions
    scored = any("." in cell for cell in last)
    where = [line for line, _ in rows]
    return Table(
        kind="csv of predicted boxes" if scored else f"AVA csv of {width} columns",
        lines=np.array(where),
        names=columns[0],
        moments=_floats(columns[1], where, path, "second"),
        corners=_corners(columns[2:6] if width > 2 else [[""] * len(rows)] * 4, where, path),
        actions=actions,
        persons=_persons([] if scored else last, where, path),
        scores=_floats(last, where, path, "score", empty=1.0) if scored else None,
    )


def _read_named(path: Path, rows: list[tuple[int, list[str]]]) -> Table:
    """Read a csv with a header."""
    names = {other: name for name, others in COLUMNS.items() for other in (name, *others)}
    head = [cell.strip().lower() for cell in rows[0][1]]
    places: dict[str, int] = {}
    for place, cell in enumerate(head):
        if cell not in names:
            close = difflib.get_close_matches(cell, names, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"{path} line {rows[0][0]}: column {cell!r} is not known{meant or ';'} a header "
                f"has {', '.join(COLUMNS)}, a row without a header 8, 7 or 2 columns, as AVA"
            )
        places[names[cell]] = place
    moment = "frame" if "frame" in places else "timestamp"
    missing = [name for name in ("video", moment, *CORNERS) if name not in places]
    if missing:
        raise UserError(f"{path} line {rows[0][0]} has no column {missing[0]!r}: {','.join(head)}")
    rows = rows[1:]
    for line, row in rows:
        if len(row) != len(head):
            raise UserError(
                f"{path} line {line} has {len(row)} columns, the header {len(head)}: "
                f"{','.join(row)}; put names with commas in quotes"
            )
    where = [line for line, _ in rows]

    def column(name: str) -> list[str]:
        place = places.get(name)
        return [] if place is None else [row[place].strip() for _, row in rows]

    scores = column("score")
    return Table(
        kind="csv with a header",
        lines=np.array(where, np.int64),
        names=column("video"),
        moments=_floats(column(moment), where, path, moment),
        corners=_corners([column(name) for name in CORNERS], where, path),
        actions=column("action") or [""] * len(rows),
        persons=_persons(column("person"), where, path),
        scores=_floats(scores, where, path, "score", empty=1.0) if scores else None,
        by_frame=moment == "frame",
    )


def _floats(
    cells: list[str],
    lines: list[int],
    path: Path,
    name: str,
    *,
    empty: float | None = None,
) -> np.ndarray:
    """Return numbers, float64 [n]. empty: the value of empty cells; None does not allow them."""
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            values[row] = float(cell) if cell or empty is None else empty
        except ValueError:
            raise UserError(f"{path} line {lines[row]}: {name} {cell!r} is not a number") from None
    bad = np.flatnonzero(~np.isfinite(values)).tolist()
    if bad and empty is None:
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
    whole = all(cell.lstrip("-").isdecimal() for cell in cells if cell)
    values = []
    for cell in cells:
        number = int(cell) if cell and whole else numbers.setdefault(cell, len(numbers))
        values.append(number if cell else -1)
    return np.array(values, np.int64)
