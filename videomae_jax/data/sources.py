"""A list, a folder or packed records -> which videos there are, with their labels."""

import difflib
import functools
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from videomae_jax.data.memory import FrameMemory
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


class ClipReader(Protocol):
    """Reads the videos of a source that are no files of their own, as `decode.read_clip` does."""

    def read_clip(
        self, path: str, choose: Callable[[int], np.ndarray], *, channels: int
    ) -> np.ndarray: ...

    def spans(
        self, path: str, choose: Callable[[int], np.ndarray]
    ) -> list[tuple[str, int, int]]: ...


@dataclass(frozen=True)
class Videos:
    """Videos in a fixed order; the position in it is the id of a video.

    `paths` are absolute; where a `reader` reads them, names that it knows. `labels` are
    int32 [count] or None; `class_names` are those of labels 0, 1, ..., where the source gave
    names. `name` is the source.
    `memory` keeps decoded videos, None decodes anew for every clip. `decoder` reads files.
    """

    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    name: str
    reader: ClipReader | None = None
    memory: FrameMemory | None = None
    decoder: str = "pyav"

    def __len__(self) -> int:
        return len(self.paths)

    def read_clip(
        self, index: int, choose: Callable[[int], np.ndarray], *, channels: int
    ) -> np.ndarray:
        """Return the frames of a video that `choose` picks: see `decode.read_clip`."""
        # PyAV is only needed where videos are read.
        from videomae_jax.data.decode import read_clip

        path = self.paths[index]
        if self.reader:
            read = functools.partial(self.reader.read_clip, path, channels=channels)
        else:
            read = functools.partial(read_clip, path, channels=channels, decoder=self.decoder)
        if self.memory:
            return self.memory.read_clip((self.reader, path, channels), read, choose)
        return read(choose)

    def spans(self, index: int, choose: Callable[[int], np.ndarray]) -> list[tuple[str, int, int]]:
        """Return where the bytes lie that `choose` needs: (file, offset, length); -1 is all."""
        path = self.paths[index]
        return self.reader.spans(path, choose) if self.reader else [(path, 0, -1)]


def read_videos(path: str | os.PathLike) -> Videos:
    """Open a manifest file, a folder of videos, one video, packed records, `tfds:NAME[@SPLIT]`.

    A manifest has one `path` or `path label` a line, with a space, a comma or a
    tab between them, with or without a header; blank lines and lines that begin
    with # are skipped. Paths are relative to the manifest's folder. Labels are
    integers, or names that are numbered in alphabetical order.
    In a folder, every file with a video suffix counts, however deep, in
    alphabetical order. Where all lie directly in two or more sub-folders, those
    are the classes. For records see `records.open_records`.
    Raises UserError for a missing path, an empty list, rows that do not agree,
    and a list of which no file exists. Single missing files are bad videos later.
    """
    name = os.path.expanduser(path)
    described = os.path.join(name, "dataset_info.json")  # by tensorflow-datasets
    if name.startswith("tfds:") or "://" in name or os.path.exists(described):
        # Brings TensorFlow, which lists and folders do without.
        from videomae_jax.data.records import open_records

        return open_records(name)
    path = Path(name).absolute()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file() and path.suffix[1:].lower() in SUFFIXES:
        return Videos(paths=(str(path),), labels=None, class_names=None, name=str(path))
    if path.is_file():
        return _read_manifest(path)
    raise UserError(f"no such list or folder of videos: {path}{_nearest(path)}")


def split_videos(videos: Videos, *, holdout: float, seed: int) -> tuple[Videos, Videos]:
    """Divide videos into (training, held out) for those who have no validation list.

    `holdout` is the share to hold out, between 0 and 1; at least one video lies on
    each side. Which ones depends on the seed and on each path below the folder
    that they share, so it survives a move, and new videos move few old ones.
    """
    if not 0 < holdout < 1:
        raise UserError(f"holdout is a share between 0 and 1, not {holdout}: use 0.1")
    if len(videos) < 2:
        raise UserError(f"{videos.name} has {len(videos)} video: 2 are needed to hold one out")
    folder = os.path.commonpath([os.path.dirname(path) for path in videos.paths])

    def draw(index: int) -> bytes:
        name = os.path.relpath(videos.paths[index], folder)
        return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()

    size = min(max(1, round(holdout * len(videos))), len(videos) - 1)
    ranked = sorted(range(len(videos)), key=draw)
    return pick_videos(videos, sorted(ranked[size:])), pick_videos(videos, sorted(ranked[:size]))


def thin_videos(videos: Videos, *, most: int) -> Videos:
    """Return at most `most` of the videos, evenly spaced, so that every class has its share."""
    return pick_videos(videos, list(range(0, len(videos), -(-len(videos) // most))))


def number_labels(videos: Videos, class_names: tuple[str, ...]) -> Videos:
    """Number the classes of videos that name them by their place in `class_names`.

    Numbers stay as they are. Raises UserError for videos without labels, and for classes that
    are not among the names.
    """
    if videos.labels is None:
        raise UserError(
            f"{videos.name} has no labels: give `path label` lines or a folder with a sub-folder "
            "per class"
        )
    if videos.class_names is None or videos.class_names == class_names:
        return replace(videos, class_names=class_names or None)
    if not class_names:
        raise UserError(
            f"{videos.name} names its classes, the training videos number them: use one kind"
        )
    unknown = [name for name in videos.class_names if name not in class_names]
    if unknown:
        raise UserError(
            f"{videos.name} has {len(unknown)} classes that are not among the "
            f"{len(class_names)} of training, first {unknown[0]!r}"
            f"{_did_you_mean(unknown[0], class_names)}"
        )
    places = np.array([class_names.index(name) for name in videos.class_names], np.int32)
    return replace(videos, labels=places[videos.labels], class_names=class_names)


def _did_you_mean(name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def pick_videos(videos: Videos, indices: list[int]) -> Videos:
    """The videos at some places, in that order."""
    return replace(
        videos,
        paths=tuple(videos.paths[index] for index in indices),
        labels=None if videos.labels is None else videos.labels[indices],
    )


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
