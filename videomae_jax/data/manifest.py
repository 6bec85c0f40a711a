"""Lists of videos as text files: one `path`, `path label` or `path label|label` per line."""

import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videomae_jax import paths
from videomae_jax.data.text_files import is_text, read_text, split_lines, write_lines
from videomae_jax.data.videos import SUFFIXES, Videos, find_labels, list_labels
from videomae_jax.errors import UserError

# How many files of a list are checked before all of it is accepted: a network disk takes
# milliseconds for each, and a list may have a million.
CHECKED = 64

# A quote inside quotes is doubled, as csv does; one that is not is accepted where it can be told.
_QUOTED = re.compile(
    r"""(?P<quote>["'])(?P<path>(?:(?!\1).|\1\1)+|.+?)\1(?:\s*(?P<gap>[,;\t ])\s*(?P<label>.*))?"""
)
# Greedy: the path ends at the last suffix, so it may contain spaces and commas.
_SUFFIXED = re.compile(
    rf"(?P<path>.*\.(?:{'|'.join(SUFFIXES)}))(?:\s*(?P<gap>[,;\t ])\s*(?P<label>.*))?", re.I
)
_OTHER = re.compile(r"(?P<path>.*?)(?P<gap>\t|\s*,\s*|\s+)(?P<label>[^,\t ]*)")
# pandas writes whole numbers as 2.0 if one of the column is missing.
_NUMBER = re.compile(r"-?\d+(?:\.0*)?")
# Between the labels of a video that has several.
BAR = "|"
# Labels of such a list are the columns of a matrix: a large one is a mistake.
MOST_LABELS = 65_536


class Row(NamedTuple):
    """One line of a manifest. line: counted from 1."""

    line: int
    path: str
    label: str | None


def read_manifest(manifest: Path) -> Videos:
    """Read a manifest, see `sources.read_videos`.

    Raises UserError for a file that cannot be read or is not UTF-8 text, nor UTF-16 with a byte
    order mark, an empty list, rows that do not agree, and a list of which no file exists.
    """
    text = read_text(manifest, strict=False)
    lines = [(number, line.strip(" \t")) for number, line in enumerate(split_lines(text), 1)]
    rows = [
        _read_row(line, number=number, manifest=manifest)
        for number, line in lines
        if line and not _is_comment(line, manifest)
    ]
    if len(rows) > 1 and _is_header(rows[0], rows[1]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"{manifest} lists no videos; it needs one `path label` a line")
    files = tuple(_find(paths.join(manifest.parent, row.path)) for row in rows)
    _check_text(rows, files, manifest)
    _check_exist(files, manifest)
    labels, class_names = _read_labels(rows, manifest)
    return Videos(paths=files, labels=labels, class_names=class_names, name=str(manifest))


def write_manifest(videos: Videos, path: str | os.PathLike[str], *, numbers: bool = False) -> None:
    """Write a manifest that `read_manifest` reads back: `"path","class"` lines.

    Paths below the folder of the manifest become relative. Labels are numbers if `numbers` is
    set, if there are no names, or if one of the names reads as a number or has a `|`. Raises
    UserError for a path that a line cannot hold.
    """
    path = paths.full_path(path)
    folder = os.path.join(path.parent, "")
    labels = _format_labels(videos, numbers=numbers)
    lines = []
    for index, file in enumerate(videos.paths):
        if file.startswith(folder):
            file = os.path.relpath(file, path.parent)
        line = _quote(file)
        lines.append(f"{line},{labels[index]}" if labels else line)
    write_lines(path, lines)


def _format_labels(videos: Videos, *, numbers: bool) -> list[str] | None:
    """Return the labels as they are written, None if there are none."""
    if videos.labels is None:
        return None
    names = videos.class_names or ()
    rows = list_labels(videos)
    # A bar at the end of each row says that a list is of several labels where no row has two.
    end = BAR if videos.multi_label and max(map(len, rows)) < 2 else ""
    if numbers or not names or any(_NUMBER.fullmatch(name) or BAR in name for name in names):
        return [BAR.join(map(str, row)) + end or BAR for row in rows]
    return [_quote(BAR.join(names[label] for label in row) + end or BAR) for row in rows]


def _quote(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise UserError(f"a manifest cannot hold line breaks: rename {text!r}")
    return '"' + text.replace('"', '""') + '"'


def _is_comment(line: str, manifest: Path) -> bool:
    """Return whether a line is a comment; HMDB51 has videos whose names begin with #."""
    if not line.startswith("#"):
        return False
    match = _SUFFIXED.fullmatch(line)
    if match is None or line[1:2].isspace():
        return True
    if paths.exists(paths.join(manifest.parent, match["path"])):
        return False
    # A row that was commented out names a video without the #; a missing video does not.
    return paths.exists(paths.join(manifest.parent, match["path"][1:]))


def _find(path: str) -> str:
    """Return the path, or the one that exists if only its accents are encoded in another way.

    Copied from a Mac, é in a name is often two characters, e and an accent; in a list it is one. In
    a bucket, where every look takes a request, the name must be exact.
    """
    if path.isascii() or paths.is_remote(path) or os.path.exists(path):
        return path
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next(filter(os.path.exists, forms), path)


def _check_text(rows: list[Row], files: tuple[str, ...], manifest: Path) -> None:
    """Raise UserError for bytes that are not text, unless they are the name of a file.

    Archives made on Windows have names in other encodings.
    """
    for row, path in zip(rows, files, strict=True):
        named = is_text(row.path) or os.path.exists(path)
        if not named or not is_text(row.label or ""):
            raise UserError(
                f"{manifest} is not a text file in UTF-8 (line {row.line}); "
                "a list of videos has one `path label` a line"
            )


def _read_row(line: str, *, number: int, manifest: Path) -> Row:
    match = _QUOTED.fullmatch(line) or _SUFFIXED.fullmatch(line)
    if match is None and (paths.is_remote(manifest) or not os.path.exists(manifest.parent / line)):
        match = _OTHER.fullmatch(line)
    if match is None:
        return Row(number, line, None)
    label = (match["label"] or "").strip()
    gap = match["gap"]
    if gap:
        gap = gap.strip(" ") or " "
    quote = label[0] if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'" else ""
    if quote:
        label = label[1:-1].replace(2 * quote, quote)
    label = re.sub(r"\s*\|\s*", BAR, label)
    if gap and not quote and gap in label:
        columns = 1 + len(label.split(gap) if gap != " " else label.split())
        raise UserError(
            f"{manifest} line {number} has {columns} columns, not `path` or `path label`, where "
            f"several labels are `a|b`: {line}"
        )
    path = match["path"]
    around = match.groupdict().get("quote")
    # A name may begin or end with a space of any kind; then it is in quotes.
    path = path.replace(2 * around, around) if around else path.strip(" \t")
    return Row(number, path, label or None)


def _is_header(first: Row, second: Row) -> bool:
    """Return whether the first row names the columns.

    It then has words where the second row has a file or a number. A path without a suffix in a
    list of such paths is not a header.
    """

    def is_file(path: str) -> bool:
        return "." in os.path.basename(path) or os.sep in path

    def is_number(label: str | None) -> bool:
        return label is not None and all(map(_NUMBER.fullmatch, label.split(BAR)))

    if is_file(first.path) or is_number(first.label):
        return False
    return is_file(second.path) or is_number(second.label)


def _read_labels(
    rows: list[Row], manifest: Path
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return (labels, class names): names are numbered in alphabetical order.

    Where any row has a bar, labels are bool [rows, classes]; a row without a label then is a video
    of no class.
    """
    given = [row for row in rows if row.label is not None]
    if not given:
        return None, None
    if not any(BAR in (row.label or "") for row in given):
        if len(given) < len(rows):
            first = next(row.line for row in rows if row.label is None)
            raise UserError(
                f"{manifest}: {len(rows) - len(given)} of {len(rows)} rows have no label, first "
                f"line {first}; label all of them or none (a `|` alone is a video of no class)"
            )
        return _number_labels(given, manifest, most=2**31)
    parts = [[part for part in (row.label or "").split(BAR) if part] for row in rows]
    single = [
        row._replace(label=label) for row, part in zip(rows, parts, strict=True) for label in part
    ]
    numbers, names = _number_labels(single, manifest, most=MOST_LABELS)
    labels = np.zeros((len(rows), len(names or ()) or numbers.max(initial=-1) + 1), bool)
    labels[np.repeat(np.arange(len(rows)), list(map(len, parts))), numbers] = True
    return labels, names


def _number_labels(
    rows: list[Row], manifest: Path, *, most: int
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return (labels int32 [rows], class names) of rows with one label each, below `most`."""
    labels = [row.label or "" for row in rows]
    numeric = [_NUMBER.fullmatch(label) is not None for label in labels]
    if any(numeric) and not all(numeric):
        number, word = rows[numeric.index(True)], rows[numeric.index(False)]
        raise UserError(
            f"{manifest} mixes numbers and names as labels: line {number.line} has "
            f"{number.label}, line {word.line} has {word.label}; use one kind"
        )
    if not any(numeric):
        names = sorted(set(labels))
        return find_labels(labels, names), tuple(names) or None
    numbers = [int(label.partition(".")[0]) for label in labels]
    for row, value in zip(rows, numbers, strict=True):
        if not 0 <= value < most:
            upper = f", of several a video up to {most - 1:,}" if most == MOST_LABELS else ""
            raise UserError(
                f"{manifest} line {row.line}: label {row.label}; labels count from 0{upper}"
            )
    return np.array(numbers, np.int32), None


def _check_exist(files: tuple[str, ...], manifest: Path) -> None:
    """Raise UserError if no file exists; single missing ones are unreadable videos later.

    In a bucket a part of them is enough to tell.
    """
    some = files[:: -(-len(files) // CHECKED)]
    local = [file for file in files if not paths.is_remote(file)]
    if any(map(paths.exists, some)) or any(map(os.path.exists, local)):
        return
    raise UserError(
        f"none of the {len(files)} videos in {manifest} exists, first {files[0]}; "
        f"paths in a list are relative to its folder {manifest.parent}"
        + (", with / between folders" if "\\" in files[0] else "")
    )
