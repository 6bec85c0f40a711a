"""The videos of a data set: paths, labels, and how their frames are read."""

import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.sampling import ByTime, Choose
from videomae_jax.errors import UserError, did_you_mean
from videomae_jax.paths import is_remote

SUFFIXES = "mp4 mkv webm avi mov m4v mpg mpeg vob ts mts m2ts 3gp flv wmv asf ogv".split()


class ClipReader(Protocol):
    """Reads videos that are not files of their own, such as those in packed records.

    shards: the files that hold them. shrunk_to: pixels of the short side to which larger frames
    were resized, 0 if none were.
    """

    @property
    def shards(self) -> tuple[str, ...]: ...

    @property
    def shrunk_to(self) -> int: ...

    def read_clip(self, path: str, choose: Choose, *, channels: int) -> np.ndarray:
        """Return the frames that `choose` picks, as `decode.read_clip` does."""

    def spans(self, path: str, choose: Choose) -> list[tuple[str, int, int]]:
        """Return where the bytes of these frames are: (file, offset, length)."""

    def size(self, path: str) -> tuple[int, int]:
        """Return the height and the width of the frames. Raises UnreadableVideo."""


@dataclass(frozen=True)
class Videos:
    """Videos in a fixed order; the index of a video is its id.

    paths: absolute, or names that `reader` knows. labels: int32 [len(paths)], or bool
    [len(paths), classes] if a video may have several labels or none. class_names: the names of
    labels 0, 1, ..., if the source has names. name: the source. memory: a cache of
    decoded videos; None decodes each clip anew. decoder: reads files, see
    `decoders.open_decoder`. notes: what the source holds beside these videos, for people.
    key_frames: of action detection. With it the list has a row for each key frame, paths are those
    of their videos and repeat, and class_names are the actions.
    """

    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    name: str
    reader: ClipReader | None = None
    memory: FrameMemory | None = None
    decoder: str = "pyav"
    notes: tuple[str, ...] = ()
    key_frames: KeyFrames | None = None

    def __post_init__(self) -> None:
        # They go into configs, tables and pictures. Paths may be any bytes.
        for name in self.class_names or ():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{self.name}: the class name {name!r} is not UTF-8: rename it"
                ) from None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that are read: of packed videos those of the records."""
        return self.reader.shards if self.reader else self.paths

    @property
    def unit(self) -> str:
        """Return what its entries are: videos or key frames."""
        return "videos" if self.key_frames is None else "key frames"

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several labels, or none."""
        return self.labels is not None and self.labels.ndim == 2

    def labels_at(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels of videos; where an index is -1, the label -1, or none of several.

        indices: int [b]. Returns int32 [b] or bool [b, classes]. Raises UserError without labels.
        """
        labels = required_labels(self)
        padding = indices < 0
        if labels.ndim == 2:
            return labels[indices] & ~padding[:, None]
        return np.where(padding, -1, labels[indices]).astype(np.int32)

    def read_clip(self, index: int, choose: Choose, *, channels: int) -> np.ndarray:
        """Return the frames of a video that `choose` picks: see `decode.read_clip`."""
        # PyAV is only needed where videos are read.
        from videomae_jax.data.decode import read_clip

        path = self.paths[index]
        if self.reader:
            read = functools.partial(self.reader.read_clip, path, channels=channels)
        else:
            read = functools.partial(read_clip, path, channels=channels, decoder=self.decoder)
        if self.memory:
            key = self.reader, path, channels, isinstance(choose, ByTime)
            return self.memory.read_clip(key, read, choose)
        return read(choose)

    def read_size(self, index: int) -> tuple[int, int]:
        """Return the height and the width of a video. Raises UnreadableVideo."""
        from videomae_jax.data.decode import read_size

        path = self.paths[index]
        return self.reader.size(path) if self.reader else read_size(path)

    def spans(self, index: int, choose: Choose) -> list[tuple[str, int, int]]:
        """Return where the bytes of the chosen frames are: (file, offset, length); -1 is all."""
        path = self.paths[index]
        return self.reader.spans(path, choose) if self.reader else [(path, 0, -1)]


def split_videos(videos: Videos, *, holdout: float, seed: int) -> tuple[Videos, Videos]:
    """Split videos at random into (training, held out).

    `holdout` is the fraction to hold out, between 0 and 1; both parts get at least one video.
    The split depends on the seed and on each path relative to the common folder. So it stays
    the same when the folder moves, and new videos move few old ones to the other part. All key
    frames of a video are in the same part.
    Raises UserError for a fraction out of range, and for fewer than two videos.
    """
    if not 0 < holdout < 1:
        raise UserError(f"holdout is a fraction between 0 and 1, not {holdout}: use 0.1")
    # Each part of the list that must not be divided.
    units = [[index] for index in range(len(videos))]
    if videos.key_frames is not None:
        units = list(group_by_path(videos.paths).values())
    if len(units) < 2:
        raise UserError(f"{videos.name} has {len(units)} video: 2 are needed to hold one out")
    names = relative_names(videos)

    def draw(unit: list[int]) -> bytes:
        text = f"{seed} {names[unit[0]]}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    size = min(max(1, round(holdout * len(units))), len(units) - 1)
    ranked = sorted(units, key=draw)
    parts = [sorted(itertools.chain(*part)) for part in (ranked[size:], ranked[:size])]
    train, held_out = (pick_videos(videos, part) for part in parts)
    return train, held_out


def relative_names(videos: Videos) -> list[str]:
    """Return the paths of videos relative to their common folder, so that all can be moved."""
    # An address counts as a folder at the root, so that a list may have both kinds.
    files = [f"/{path}" if is_remote(path) else path for path in videos.paths]
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, folder) for file in files]


def group_by_path(paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of each distinct path, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(path, []).append(index)
    return groups


def thin_videos(videos: Videos, *, most: int) -> Videos:
    """Return `most` of the videos, evenly spaced over the list, or all if there are fewer."""
    count = min(most, len(videos))
    return pick_videos(videos, [index * len(videos) // count for index in range(count)])


def check_are_files(videos: Videos) -> None:
    """Raise UserError if videos are not files of their own."""
    if videos.reader:
        raise UserError(
            f"{videos.name} is packed already: give the list or the folder that it was made of"
        )


def required_labels(videos: Videos) -> np.ndarray:
    """Return the labels of videos. Raises UserError if they have none."""
    if videos.labels is None:
        raise UserError(
            f"{videos.name} has no labels: give `path label` lines or a folder with a sub-folder "
            "per class" + "".join(f"; {note}" for note in videos.notes)
        )
    return videos.labels


def number_labels(videos: Videos, class_names: tuple[str, ...], *, of: str = "training") -> Videos:
    """Renumber the labels of videos with named classes to their indices in `class_names`.

    Labels without names are not changed. of: what has these classes, for people. Raises UserError
    for videos without labels, and for classes that are not among the names.
    """
    labels = required_labels(videos)
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
            f"{len(class_names)} of {of}, first {unknown[0]!r}"
            f"{did_you_mean(unknown[0], class_names)}"
        )
    numbers = np.array([class_names.index(name) for name in videos.class_names], np.int32)
    if labels.ndim == 1:
        return replace(videos, labels=numbers[labels], class_names=class_names)
    renumbered = np.zeros((len(videos), len(class_names)), bool)
    renumbered[:, numbers] = labels
    return replace(videos, labels=renumbered, class_names=class_names)


def used_labels(videos: Videos) -> np.ndarray:
    """Return the labels that at least one video has, in increasing order: int [m].

    Raises UserError for videos without labels.
    """
    labels = required_labels(videos)
    return np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))


def count_labels(videos: Videos, classes: int) -> np.ndarray:
    """Return the number of videos of each class: int64 [classes]. They must have labels."""
    labels = required_labels(videos)
    if labels.ndim == 1:
        return np.bincount(labels, minlength=classes)
    return np.pad(labels.sum(axis=0), (0, classes - labels.shape[1]))


def list_labels(videos: Videos) -> list[list[int]]:
    """Return the labels of each video, in increasing order. They must have labels."""
    labels = required_labels(videos)
    if labels.ndim == 1:
        return [[label] for label in labels.tolist()]
    return [np.flatnonzero(row).tolist() for row in labels]


def to_several_labels(videos: Videos, classes: int) -> Videos:
    """Return videos with labels bool [n, classes]; their labels must be below `classes`."""
    labels = required_labels(videos)
    several = np.zeros((len(videos), classes), bool)
    if labels.ndim == 1:
        several[np.arange(len(videos)), labels] = True
    else:
        used = labels[:, :classes]  # only unused labels are left out
        several[:, : used.shape[1]] = used
    return replace(videos, labels=several)


def to_one_label(videos: Videos, *, reason: str) -> Videos:
    """Return videos with labels int32 [n].

    Raises UserError, which ends in `reason`, if a video has several labels or none.
    """
    labels = required_labels(videos)
    if labels.ndim == 1:
        return videos
    others = labels.sum(axis=1) != 1
    if others.any():
        raise UserError(
            f"{others.sum()} of {len(videos)} videos of {videos.name} have several labels or "
            f"none, first {videos.paths[others.argmax()]}: {reason}"
        )
    return replace(videos, labels=labels.argmax(axis=1).astype(np.int32))


def label_folders(folders: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return the labels of videos by the names of their class folders, and the class names.

    Labels are int32 [len(folders)], names in alphabetical order. Folders that are all named by
    different whole numbers are their own labels, as in a manifest, and have no names.
    """
    names = sorted(set(folders))
    if names and all(name.isdecimal() and name.isascii() for name in names):
        numbers = {int(name) for name in names}
        if len(numbers) == len(names) and max(numbers) < 2**31:
            return np.array([int(folder) for folder in folders], np.int32), None
    return find_labels(folders, names), tuple(names)


def find_labels(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return the index of each label in the distinct `names`: int32 [len(labels)]."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[label] for label in labels], np.int32)


def pick_videos(videos: Videos, indices: list[int]) -> Videos:
    """Return the videos at some indices, in that order."""
    return replace(
        videos,
        paths=tuple(videos.paths[index] for index in indices),
        labels=None if videos.labels is None else videos.labels[indices],
        key_frames=None if videos.key_frames is None else videos.key_frames.pick(indices),
    )
