"""A list, a folder or packed records -> which videos there are, with their labels."""

import difflib
import os
import re
from pathlib import Path

import numpy as np

from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

SUFFIXES = "mp4 mkv webm avi mov m4v mpg mpeg ts 3gp flv wmv ogv".split()
# How many files of a list are looked up before it is trusted: a network disk
# takes milliseconds for each, and a list may have a million.
LOOKED_UP = 64

_QUOTED = re.compile(r"""(["'])(?P<path>.+?)\1(?:\s*(?P<gap>[,\t ])\s*(?P<label>.*))?""")
# Greedy: the path ends at the last suffix, so spaces and commas may stand in it.
_SUFFIXED = re.compile(
    rf"(?P<path>.*\.(?:{'|'.join(SUFFIXES)}))(?:\s*(?P<gap>[,\t ])\s*(?P<label>.*))?", re.I
)
_OTHER = re.compile(r"(?P<path>.*?)(?P<gap>\t|\s*,\s*|\s+)(?P<label>[^,\t ]*)")


def read_videos(path: str | os.PathLike) -> Videos:
    """Open a manifest file, a folder of videos, one video, packed records, `tfds:NAME[@SPLIT]`.

    A manifest has one `path` or `path label` a line, with a space, a comma or a
    tab between them, with or without a header; blank lines and lines that begin
    with # are skipped. Paths are relative to the manifest's folder. Labels are
    integers, or names that are numbered in alphabetical order.
    In a folder, every file with a video suffix counts, however deep, in
    alphabetical order. Where all lie directly in two or more sub-folders, those
    are the classes. For records see `open_records`.
    Raises UserError for a missing path, an empty list, rows that do not agree,
    and a list of which no file exists. Single missing files are bad videos later.
    """
    name = os.path.expanduser(path)
    described = os.path.join(name, "dataset_info.json")  # by tensorflow-datasets
    if name.startswith("tfds:") or "://" in name or os.path.exists(described):
        return open_records(name)
    path = Path(name).absolute()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file() and path.suffix[1:].lower() in SUFFIXES:
        return Videos(paths=(str(path),), labels=None, class_names=None, name=str(path))
    if path.is_file():
        return _read_manifest(path)
    raise UserError(f"no such list or folder of videos: {path}{_nearest(path)}")


def find_videos(folder: str | os.PathLike) -> list[str]:
    """Every file with a video suffix below a folder, as sorted paths relative to it."""
    endings = tuple(f".{suffix}" for suffix in SUFFIXES)
    return sorted(
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(endings)
    )


def _read_folder(folder: Path) -> Videos:
    found = find_videos(folder)
    if not found:
        raise UserError(f"no videos in {folder}: looked for {' '.join(SUFFIXES)}")
    parts = [Path(file).parts for file in found]
    names = sorted({part[0] for part in parts})
    labelled = len(names) > 1 and all(len(part) == 2 for part in parts)
    return Videos(
        paths=tuple(os.path.join(folder, file) for file in found),
        labels=_number([part[0] for part in parts], names) if labelled else None,
        class_names=tuple(names) if labelled else None,
        name=str(folder),
    )


def _read_manifest(manifest: Path) -> Videos:
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{manifest} is not a text file in UTF-8 (byte {error.start}); "
            "a list of videos has one `path label` a line"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [
        (number, *_read_row(line, where=f"{manifest} line {number}", folder=manifest.parent))
        for number, line in lines
        if line and not line.startswith("#")
    ]
    if len(rows) > 1 and _is_header(rows[0], rows[1]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"{manifest} lists no videos; it needs one `path label` a line")
    paths = tuple(os.path.join(manifest.parent, path) for _, path, _ in rows)
    _look_up(paths, manifest)
    labels, class_names = _read_labels(rows, manifest)
    return Videos(paths=paths, labels=labels, class_names=class_names, name=str(manifest))


def _read_row(line: str, *, where: str, folder: Path) -> tuple[str, str | None]:
    """One line as (path, label or None)."""
    row = _QUOTED.fullmatch(line) or _SUFFIXED.fullmatch(line)
    if row is None and not os.path.exists(folder / line):
        row = _OTHER.fullmatch(line)
    if row is None:
        return line, None
    path, gap, label = row["path"].strip(), row["gap"], (row["label"] or "").strip()
    gap = gap and (gap.strip(" ") or " ")
    quoted = len(label) > 1 and label[0] == label[-1] and label[0] in "\"'"
    if gap and not quoted and gap in label:
        columns = 1 + len(label.split(gap)) if gap != " " else 1 + len(label.split())
        raise UserError(f"{where} has {columns} columns, not `path` or `path label`: {line}")
    return path, (label[1:-1] if quoted else label) or None


def _is_header(first: tuple, second: tuple) -> bool:
    """Whether the first row names the columns: words where the second row has a file or a number.

    A path without a suffix in a list of such paths is no header.
    """

    def is_file(path: str) -> bool:
        return "." in os.path.basename(path) or os.sep in path

    def is_number(label: str | None) -> bool:
        return label is not None and label.lstrip("-").isdigit()

    if is_file(first[1]) or is_number(first[2]):
        return False
    return is_file(second[1]) or is_number(second[2])


def _read_labels(rows: list[tuple], manifest: Path) -> tuple:
    """(labels, class names) of rows of (line number, path, label or None)."""
    bare = [number for number, _, label in rows if label is None]
    if len(bare) == len(rows):
        return None, None
    if bare:
        raise UserError(
            f"{manifest}: {len(bare)} of {len(rows)} rows have no label, first line {bare[0]}; "
            "label all of them or none"
        )
    numbers = [(number, label) for number, _, label in rows if label.lstrip("-").isdecimal()]
    words = [(number, label) for number, _, label in rows if not label.lstrip("-").isdecimal()]
    if numbers and words:
        raise UserError(
            f"{manifest} mixes numbers and names as labels: line {numbers[0][0]} has "
            f"{numbers[0][1]}, line {words[0][0]} has {words[0][1]}; use one kind"
        )
    if words:
        names = sorted({label for _, label in words})
        return _number([label for _, label in words], names), tuple(names)
    for number, label in numbers:
        if not 0 <= int(label) < 2**31:
            raise UserError(f"{manifest} line {number}: label {label}; labels count from 0")
    return np.array([int(label) for _, label in numbers], np.int32), None


def _number(labels: list[str], names: list[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[label] for label in labels], np.int32)


def _look_up(paths: tuple[str, ...], manifest: Path) -> None:
    """Raise where no file of a list exists; a few missing ones are left for later."""
    sample = paths[:: -(-len(paths) // LOOKED_UP)]
    if any(map(os.path.exists, sample)) or any(map(os.path.exists, paths)):
        return
    raise UserError(
        f"none of the {len(paths)} videos in {manifest} exists, first {paths[0]}; "
        f"paths in a list are relative to its folder {manifest.parent}"
    )


def _nearest(path: Path) -> str:
    """A hint at the most similar existing name, or at the part of a path that exists."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    close = difflib.get_close_matches(path.name, os.listdir(parent), n=1)
    if close:
        return f"; did you mean {parent / close[0]}?"
    return f"; {parent} exists, but has no {path.name}"


def open_records(source: str) -> Videos:
    """Open packed records, a folder prepared by tensorflow-datasets, or `tfds:NAME[@SPLIT]`.

    A folder is a path, or an address that tf.io.gfile knows (gs://). Raises UserError where
    there is none, and for an index that is not of this version or does not fit its files.
    """
    # They bring TensorFlow, which lists and folders do without.
    from videomae_jax.data.records import INDEX, open_packed
    from videomae_jax.data.storage import exists, join
    from videomae_jax.data.tfds import open_tfds

    if source.startswith("tfds:"):
        return open_tfds(source)
    if exists(join(source, INDEX)):
        return open_packed(source)
    if exists(join(source, "dataset_info.json")):
        return open_tfds(source)
    raise UserError(f"{source} has no {INDEX}: give a folder that `videomae data pack` has written")
