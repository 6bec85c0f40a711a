"""The videos of a data set: paths, labels, and what reads their frames."""

import difflib
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.errors import UserError


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
