"""Open videos: a manifest, a folder, one file, packed records or tensorflow-datasets."""

import difflib
import os
from pathlib import Path

from videomae_jax.data.manifest import read_manifest
from videomae_jax.data.videos import SUFFIXES, Videos, find_labels
from videomae_jax.errors import UserError


def read_videos(source: str | os.PathLike[str]) -> Videos:
    """Open a manifest file, a folder of videos, one video, packed records, `tfds:NAME[@SPLIT]`.

    A manifest has one `path` or `path label` per line, separated by a space, a comma, a semicolon
    or a tab, with or without a header; blank lines and lines that begin with # are skipped.
    Paths are relative to the folder of the manifest. Labels are integers, or names that are
    numbered in alphabetical order.
    In a folder, every file with a video suffix is read, at any depth, in alphabetical order. If
    all of them are directly in two or more sub-folders, those are the classes. For records see
    `open_records`.
    Raises UserError for a missing path, an empty list, rows that do not agree, and a list of
    which no file exists. Single missing files are unreadable videos later.
    """
    name = os.path.expanduser(os.fspath(source))
    described = os.path.join(name, "dataset_info.json")  # by tensorflow-datasets
    if name.startswith("tfds:") or "://" in name or os.path.exists(described):
        return open_records(name)
    path = Path(name).absolute()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file() and path.suffix[1:].lower() in SUFFIXES:
        return Videos(paths=(str(path),), labels=None, class_names=None, name=str(path))
    if path.is_file():
        return read_manifest(path)
    raise UserError(f"no such list or folder of videos: {path}{_nearest(path)}")


def open_records(source: str) -> Videos:
    """Open packed records, a folder prepared by tensorflow-datasets, or `tfds:NAME[@SPLIT]`.

    A folder is a path, or an address that tf.io.gfile can open (gs://). Raises UserError if
    there is none, and for an index of another version or one that does not fit its files.
    """
    # These import TensorFlow, which manifests and folders do not need.
    from videomae_jax.data.record_index import INDEX
    from videomae_jax.data.records import open_packed
    from videomae_jax.data.storage import exists, join
    from videomae_jax.data.tfds import open_tfds

    if source.startswith("tfds:"):
        return open_tfds(source)
    if exists(join(source, INDEX)):
        return open_packed(source)
    if exists(join(source, "dataset_info.json")):
        return open_tfds(source)
    raise UserError(f"{source} has no {INDEX}: give a folder that `videomae data pack` has written")


def find_videos(folder: str | os.PathLike[str]) -> list[str]:
    """Return every file with a video suffix below a folder, as sorted paths relative to it."""
    endings = tuple(f".{suffix}" for suffix in SUFFIXES)
    return sorted(
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, files in os.walk(os.fspath(folder), followlinks=True)
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
        labels=find_labels([part[0] for part in parts], names) if labelled else None,
        class_names=tuple(names) if labelled else None,
        name=str(folder),
    )


def _nearest(path: Path) -> str:
    """Return a hint: the most similar existing name, or the part of the path that exists."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    close = difflib.get_close_matches(path.name, os.listdir(parent), n=1)
    if close:
        return f"; did you mean {parent / close[0]}?"
    return f"; {parent} exists, but has no {path.name}"
