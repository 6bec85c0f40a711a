"""The official lists of public data sets, and plain folders -> videos.

Each layout is a function (folder, lists, split) -> Listing. Videos are found by their class and
their name without the suffix, anywhere in `folder`, so transcoded or flattened copies work too.
"""

import csv
import fnmatch
import functools
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videomae_jax.data.sources import is_system, search_folder, sort_listing
from videomae_jax.data.text_files import read_text, split_lines
from videomae_jax.data.videos import SUFFIXES, Videos, label_folders
from videomae_jax.errors import UserError
from videomae_jax.paths import as_path, find, full_path, is_folder, is_remote, read_bytes

HEAD = 1 << 12  # bytes of a list that hold its first line
SPLITS = {"train", "val", "valid", "validate", "validation", "test"}


@dataclass
class Listing:
    """The lists of a data set: rows of (path, class number or -1) for training and validation.

    class_names: the names of classes 0, 1, ..., () if there are no classes. missing: listed names
    without a video. unlisted: the number of videos that are in no list. skipped: hidden and
    system names that were not searched.
    """

    train: list[tuple[str, int]] = field(default_factory=list)
    val: list[tuple[str, int]] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    missing: list[str] = field(default_factory=list)
    unlisted: int = 0
    skipped: list[str] = field(default_factory=list)


def read_listing(
    folder: str | os.PathLike,
    *,
    layout: str = "auto",
    lists: str | os.PathLike | None = None,
    split: int = 1,
) -> tuple[Listing, str]:
    """Return the listing of a folder and its layout, one of LAYOUTS.

    lists: the folder of the official lists; None searches `folder`. split: which of the three
    splits of UCF101 and HMDB51. Raises UserError for an unknown or ambiguous layout, for a list
    that is missing or not in its format, and if no listed video exists.
    """
    folder = full_path(folder)
    lists = full_path(lists) if lists else folder
    _names.cache_clear()
    for path in (folder, lists):
        if not is_folder(path):
            raise UserError(f"no such folder: {path}")
    if layout == "auto":
        layout = _detect(folder, lists)
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is not known: use {', '.join(LAYOUTS)}")
    listing = LAYOUTS[layout](folder, lists, split)
    if not listing.train and not listing.val:
        if layout in ("folders", "flat"):
            where = "the sub-folders of " if layout == "folders" else ""
            raise UserError(f"no videos in {where}{folder}: looked for {' '.join(SUFFIXES)}")
        first = f", first {listing.missing[0]}" if listing.missing else ""
        raise UserError(
            f"none of the {len(listing.missing)} videos that {layout} lists is in {folder}{first}"
        )
    return listing, layout


def to_videos(rows: list[tuple[str, int]], class_names: tuple[str, ...], *, name: str) -> Videos:
    """Return rows of a listing as Videos, without labels if they are -1."""
    numbers = np.array([number for _, number in rows], np.int32)
    labels = None if (numbers < 0).any() else numbers
    paths = tuple(path for path, _ in rows)
    return Videos(paths=paths, labels=labels, class_names=class_names or None, name=name)


class _Finder:
    """Finds the videos of a folder by class and name, as official lists name them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, list[str]] = {}
        for file in _search(folder)[0]:
            self._files.setdefault(Path(file).stem, []).append(file)
        self._used: set[str] = set()

    def find(self, *names: str, label: str | None = None) -> str | None:
        """Return the path of the first of some names (without suffix) that exists.

        Of several videos with that name, it is the one in the folder of the class. Raises
        UserError if there is more than one.
        """
        for name in names:
            files = self._files.get(name, [])
            if len(files) > 1 and label is not None:
                same = [file for file in files if _plain(Path(file).parent.name) == _plain(label)]
                files = same or files
            if len(files) > 1:
                raise UserError(
                    f"{name} is there {len(files)} times below {self._folder}: {files[0]}, "
                    f"{files[1]}; give a folder that has one of each"
                )
            if files:
                self._used.add(files[0])
                return os.path.join(self._folder, files[0])
        return None

    @property
    def unlisted(self) -> int:
        """The number of videos that were never found."""
        return sum(map(len, self._files.values())) - len(self._used)


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", "", label).lower()


def _detect(folder: Path, lists: Path) -> str:
    """Return the layout of a folder, by the lists in it or by the depth of its videos."""
    found = [name for name, is_there in MARKS.items() if is_there(lists)]
    if len(found) > 1:
        raise UserError(f"{lists} has lists of {' and '.join(found)}: give --layout")
    if found:
        return found[0]
    parts = [Path(file).parts for file in _search(folder)[0]]
    if not parts:
        raise UserError(f"no videos in {folder}: looked for {' '.join(SUFFIXES)}")
    depths = {len(part) for part in parts}
    tops = sorted({part[0] for part in parts if len(part) > 1})
    if depths == {1}:
        return "flat"
    if tops and {top.lower() for top in tops} <= SPLITS:
        raise UserError(f"{folder} has splits ({', '.join(tops)}): list {folder / tops[0]} alone")
    if depths == {2} and len(tops) > 1:
        return "folders"
    odd = next((part for part in parts if len(part) != 2), parts[0])
    raise UserError(
        f"{folder} is neither flat nor has a folder per class alone, as {Path(*odd)} shows: give "
        "--layout folders (the first folder is the class) or --layout flat (no classes)"
    )


def _folders(folder: Path, lists: Path, split: int) -> Listing:
    """A sub-folder per class, with videos at any depth."""
    found, skipped = _search(folder)
    files = [Path(file) for file in found]
    inside = [file for file in files if len(file.parts) > 1]
    labels, names = label_folders([file.parts[0] for file in inside])
    rows = [
        (str(folder / file), label) for file, label in zip(inside, labels.tolist(), strict=True)
    ]
    return Listing(
        train=rows, class_names=names or (), unlisted=len(files) - len(rows), skipped=skipped
    )


def _flat(folder: Path, lists: Path, split: int) -> Listing:
    """Videos without classes, at any depth."""
    found, skipped = _search(folder)
    return Listing(train=[(str(folder / file), -1) for file in found], skipped=skipped)


def _ucf101(folder: Path, lists: Path, split: int) -> Listing:
    """classInd.txt (`1 ApplyEyeMakeup`), trainlist01.txt (`Class/v.avi 1`), testlist01.txt."""
    index = _one(lists, "classInd.txt")
    classes = [line.split(maxsplit=1) for line in _lines(index)]
    if any(len(row) != 2 or row[0] != str(number) for number, row in enumerate(classes, 1)):
        raise UserError(f"{index} is not in UCF101's format, `1 ApplyEyeMakeup` and so on")
    names = tuple(name for _, name in classes)
    finder, listing = _Finder(folder), Listing(class_names=names)
    for rows, kind in ((listing.train, "train"), (listing.val, "test")):
        for line in _lines(_one(lists, f"{kind}list{split:02d}.txt")):
            file = Path(line.split()[0])
            if file.parent.name not in names:
                raise UserError(f"{kind}list{split:02d}.txt: {file} has no class of {index}")
            number = names.index(file.parent.name)
            _add(rows, listing, finder.find(file.stem, label=file.parent.name), number, str(file))
    listing.unlisted = finder.unlisted
    return listing


def _hmdb51(folder: Path, lists: Path, split: int) -> Listing:
    """A file per class, brush_hair_test_split1.txt: `video.avi 1`; 1 trains, 2 tests, 0 neither."""
    ending = f"_test_split{split}.txt"
    files = _glob(lists, f"*{ending}")
    if not files:
        raise UserError(f"no *{ending} below {lists}: give --lists")
    names = tuple(file.name.removesuffix(ending) for file in files)
    finder, listing = _Finder(folder), Listing(class_names=names)
    for number, (file, label) in enumerate(zip(files, names, strict=True)):
        for line in _lines(file):
            name, _, code = line.strip().rpartition(" ")
            if not name or code not in ("0", "1", "2"):
                raise UserError(f"{file} is not in HMDB51's format, `video.avi 1`: {line!r}")
            path = finder.find(Path(name).stem, label=label)
            if code != "0":
                rows = listing.train if code == "1" else listing.val
                _add(rows, listing, path, number, f"{label}/{name}")
    listing.unlisted = finder.unlisted
    return listing


def _ssv2(folder: Path, lists: Path, split: int) -> Listing:
    """*labels.json ({template: number}), *train.json and *validation.json ([{id, template}])."""
    index = _one(lists, "*labels.json")
    try:
        numbers = {name: int(number) for name, number in _json(index).items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{index} is not in SSv2's format, a number of each template") from None
    names = tuple(sorted(numbers, key=numbers.__getitem__))
    if [numbers[name] for name in names] != list(range(len(names))):
        raise UserError(f"labels.json of SSv2 in {lists} does not number its classes from 0")
    finder, listing = _Finder(folder), Listing(class_names=names)
    for rows, kind in ((listing.train, "train"), (listing.val, "validation")):
        file = _one(lists, f"*{kind}.json")
        for row in _json(file):
            try:
                label = re.sub(r"[\[\]]", "", row["template"])
                name, number = str(row["id"]), numbers[label]
            except (KeyError, TypeError) as error:
                raise UserError(f"{file} is not in SSv2's format: no {error} for {row}") from None
            _add(rows, listing, finder.find(name), number, name)
    listing.unlisted = finder.unlisted
    return listing


def _kinetics(folder: Path, lists: Path, split: int) -> Listing:
    """*.csv of label, youtube_id, time_start, time_end, split; videos ID_000010_000020 or ID."""
    rows = []
    for file in filter(_is_kinetics, _glob(lists, "*.csv")):
        reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
        rows += [_kinetics_row(row, f"{file} line {reader.line_num}") for row in reader]
    rows = [row for row in rows if row.split != "test"]
    if not rows:
        raise UserError(f"no csv with label, youtube_id, ..., split below {lists}: give --lists")
    names = tuple(sorted({row.label for row in rows}))
    numbers = {name: number for number, name in enumerate(names)}
    finder, listing = _Finder(folder), Listing(class_names=names)
    for row in rows:
        path = finder.find(row.timed, row.name, label=row.label)
        side = listing.train if row.split == "train" else listing.val
        _add(side, listing, path, numbers[row.label], row.timed)
    listing.unlisted = finder.unlisted
    return listing


class _KineticsRow(NamedTuple):
    """One video. timed: its name with the seconds that it was cut from."""

    label: str
    name: str
    timed: str
    split: str


def _kinetics_row(row: dict[str, str], where: str) -> _KineticsRow:
    try:
        label, name, split = (row[key].strip() for key in ("label", "youtube_id", "split"))
        # pandas writes whole numbers as 10.0 if one of the column is missing.
        start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{where} is not in the format of Kinetics: {list(row.values())}") from None
    if split.lower() not in SPLITS:
        raise UserError(f"{where}: split {split!r} is not known: use train, val or test")
    return _KineticsRow(label, name, f"{name}_{start:06d}_{end:06d}", split.lower())


def _is_kinetics(file: Path) -> bool:
    head = read_bytes(file, 0, HEAD).decode("utf-8-sig", "replace")
    columns = split_lines(head)[0].strip().replace('"', "").split(",")
    return {"label", "youtube_id", "time_start", "time_end", "split"} <= set(columns)


def _add(rows: list, listing: Listing, path: str | None, number: int, name: str) -> None:
    if path is None:
        listing.missing.append(name)
    else:
        rows.append((path, number))


def _one(lists: Path, pattern: str) -> Path:
    files = _glob(lists, pattern)
    if len(files) != 1:
        many = f"{len(files)} files" if files else "no file"
        raise UserError(f"{many} {pattern} below {lists}: give --lists, the folder of the lists")
    return files[0]


@functools.lru_cache(maxsize=2)
def _names(folder: Path) -> list[str]:
    """Return what a folder of a bucket has, listed once for a whole command."""
    return find(folder)


def _search(folder: Path) -> tuple[list[str], list[str]]:
    """Return (videos, skipped), see `search_folder`."""
    return sort_listing(_names(folder)) if is_remote(folder) else search_folder(folder)


def _glob(lists: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose names fit a pattern, in order.

    Leaves out hidden and system names: an editor keeps copies of lists in such folders.
    """
    if is_remote(lists):
        names = [n for n in _names(lists) if fnmatch.fnmatchcase(n.rpartition("/")[2], pattern)]
    else:
        names = sorted(file.relative_to(lists).as_posix() for file in lists.rglob(pattern))
    return [
        as_path(f"{lists}/{name}") for name in names if not any(map(is_system, name.split("/")))
    ]


def _lines(file: Path) -> list[str]:
    return [line for line in split_lines(read_text(file)) if line.strip()]


def _json(file: Path):
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from None


LAYOUTS = {
    "folders": _folders,
    "flat": _flat,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "ssv2": _ssv2,
    "kinetics": _kinetics,
}
# Whether a folder has the lists of a data set.
MARKS = {
    "ucf101": lambda lists: any(_glob(lists, "trainlist0?.txt")),
    "hmdb51": lambda lists: any(_glob(lists, "*_test_split?.txt")),
    "ssv2": lambda lists: any(_glob(lists, "*labels.json")) and any(_glob(lists, "*train.json")),
    "kinetics": lambda lists: any(map(_is_kinetics, _glob(lists, "*.csv"))),
}
