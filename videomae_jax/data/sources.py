"""Open videos: a manifest, a folder, one file, packed records or tensorflow-datasets."""

import difflib
import os
from pathlib import Path

from videomae_jax import paths
from videomae_jax.data.manifest import read_manifest
from videomae_jax.data.videos import SUFFIXES, Videos, label_folders
from videomae_jax.errors import UserError

ENDINGS = tuple(f".{suffix}" for suffix in SUFFIXES)
# Folders and files of operating systems and network disks; those with a leading dot are hidden.
SYSTEM = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found"}


def read_videos(source: str | os.PathLike[str]) -> Videos:
    """Open a manifest file, a folder of videos, one video, packed records, `tfds:NAME[@SPLIT]`.

    A manifest has one `path` or `path label` per line, separated by a space, a comma, a semicolon
    or a tab, with or without a header; blank lines and lines that begin with # are skipped.
    Paths are relative to the folder of the manifest, or addresses in a bucket. Labels are integers,
    or names that are numbered in alphabetical order. If any row has several labels, separated by
    `|`, the labels of all are bool [videos, classes], and a row without a label, or with `|` alone,
    has none.
    In a folder, every file with a video suffix is read, at any depth, in alphabetical order. If
    all of them are directly in two or more sub-folders, those are the classes; folders named by
    numbers are their own labels. Hidden and system names are skipped. For records see
    `open_records`. All of them may be in a bucket, gs:// or s3://.
    Raises UserError for a missing path, an empty list, rows that do not agree, and a list of
    which no file exists. Single missing files are unreadable videos later.
    """
    name = os.path.expanduser(os.fspath(source))
    described = paths.join(name, "dataset_info.json")  # by tensorflow-datasets
    if name.startswith("tfds:") or paths.exists(described):
        return open_records(name)
    path = paths.full_path(name)
    if paths.is_folder(path):
        return _read_folder(path)
    if not paths.exists(path):
        raise UserError(f"no such list or folder of videos: {path}{nearest_path(path)}")
    if path.suffix[1:].lower() in SUFFIXES:
        return Videos(paths=(str(path),), labels=None, class_names=None, name=str(path))
    return read_manifest(path)


def open_records(source: str) -> Videos:
    """Open packed records, a folder prepared by tensorflow-datasets, or `tfds:NAME[@SPLIT]`.

    Raises UserError for an index of another version or one that does not fit its files.
    """
    # These import TensorFlow, which manifests and folders do not need.
    from videomae_jax.data.record_index import INDEX
    from videomae_jax.data.records import open_packed
    from videomae_jax.data.tfds import open_tfds

    if not source.startswith("tfds:") and paths.exists(paths.join(source, INDEX)):
        return open_packed(source)
    return open_tfds(source)


def find_videos(folder: str | os.PathLike[str]) -> list[str]:
    """Return every file with a video suffix below a folder, as sorted paths relative to it.

    Leaves out what `search_folder` skips.
    """
    return search_folder(folder)[0]


def search_folder(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Return (videos, skipped) below a folder, as sorted paths relative to it.

    Skipped are hidden files and folders, those of operating systems, and links to a folder that
    they are in. Only videos and folders are counted. Raises UserError for a folder that cannot be
    read.
    """
    if paths.is_remote(folder):
        return sort_listing(paths.find(folder))
    found: list[str] = []
    skipped: list[str] = []
    root = os.fspath(folder)
    # Folders, each with the real paths that lead to it.
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while waiting:
        inside, above = waiting.pop()
        try:
            with os.scandir(os.path.join(root, inside)) as scanned:
                entries = list(scanned)
        except OSError as error:
            where = os.path.join(root, inside)
            raise UserError(f"cannot read the folder {where}: {error.strerror}") from None
        for entry in entries:
            path = os.path.join(inside, entry.name)
            system = is_system(entry.name)
            # Not `entry.is_dir()`, which raises for a link to itself.
            linked = entry.is_symlink() and os.path.isdir(entry.path)
            if linked or entry.is_dir(follow_symlinks=False):
                real = os.path.realpath(entry.path)
                if system or real in above:
                    skipped.append(path)
                else:
                    waiting.append((path, (*above, real)))
            elif entry.name.lower().endswith(ENDINGS):
                (skipped if system else found).append(path)
    return sorted(found), sorted(skipped)


def is_system(name: str) -> bool:
    """Return whether a name is hidden, or that of an operating system or a network disk."""
    return name.startswith(".") or name in SYSTEM


def sort_listing(names: list[str]) -> tuple[list[str], list[str]]:
    """Return (videos, skipped) of the objects of a bucket, as `search_folder` does."""
    found = []
    skipped = set()
    for name in names:
        parts = name.split("/")
        hidden = next((i for i, part in enumerate(parts, 1) if is_system(part)), 0)
        video = name.lower().endswith(ENDINGS)
        if hidden and (video or hidden < len(parts)):
            skipped.add("/".join(parts[:hidden]))
        elif video:
            found.append(name)
    return found, sorted(skipped)


def describe_skipped(skipped: list[str]) -> str:
    """Return a note about what `search_folder` skipped."""
    return f"{len(skipped)} hidden, system or circular names skipped, such as {skipped[0]}"


def _read_folder(folder: Path) -> Videos:
    found, skipped = search_folder(folder)
    notes = [describe_skipped(skipped)] if skipped else []
    if not found:
        raise UserError(
            f"no videos in {folder}: looked for {' '.join(SUFFIXES)}"
            + "".join(f"; {note}" for note in notes)
        )
    parts = [Path(file).parts for file in found]
    folders = {part[0] for part in parts if len(part) > 1}
    others = [Path(*part) for part in parts if len(part) != 2]
    labels = names = None
    if len(folders) > 1 and not others:
        labels, names = label_folders([part[0] for part in parts])
    elif len(folders) > 1:
        notes.append(
            f"without labels, because {len(others)} of {len(found)} videos are not directly in a "
            f"class folder, first {others[0]}"
        )
    return Videos(
        paths=tuple(os.path.join(folder, file) for file in found),
        labels=labels,
        class_names=names,
        name=str(folder),
        notes=tuple(notes),
    )


def nearest_path(path: Path) -> str:
    """Return a hint: the most similar existing name, or the part of the path that exists."""
    if paths.is_remote(path):
        close = difflib.get_close_matches(path.name, paths.names(path.parent), n=1)
        return f"; did you mean {path.parent / close[0]}?" if close else ""
    parent = path.parent
    while not os.path.isdir(parent):  # `Path.is_dir` raises for a name that is too long
        path, parent = parent, parent.parent
    try:
        names = os.listdir(parent)
    except OSError as error:
        return f"; cannot read the folder {parent}: {error.strerror}"
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"; did you mean {parent / close[0]}?"
    return f"; {parent} exists, but has no {path.name}"
