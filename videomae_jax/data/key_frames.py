"""Key frames of action detection: a moment of a video, with boxes around persons and actions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Key = tuple[str, float]  # of a key frame: the id of its video, and the second in annotation files


def moment_key(name: str, stamp: float) -> Key:
    """Return the key of a moment, equal for files that round its second differently."""
    return name, round(stamp, 3)


@dataclass(frozen=True, eq=False)
class KeyFrames:
    """A row for each key frame; the boxes of row i are offsets[i] to offsets[i + 1] - 1.

    seconds: float64 [n], in the video file, from its first frame. names: the id of the video in
    annotation files. stamps: float64 [n], the second as annotation files write it. offsets: int64
    [n + 1]. boxes: float32 [total, 4], x1, y1, x2, y2 as fractions of width and height. targets:
    bool [total, K], the actions; a person may do none of the K; K is 0 for detections. scores:
    float32 [total], of the person detector, 1 for annotated boxes. persons: int64 [total], the
    same number for the same person, -1 if unknown. notes: what was decided when the boxes were
    read, and what was left out, for people. around: how many seconds of the video are stored on
    both sides of each key frame; packed records have no others.
    """

    seconds: np.ndarray
    names: tuple[str, ...]
    stamps: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray
    scores: np.ndarray
    persons: np.ndarray
    notes: tuple[str, ...] = ()
    around: float = math.inf

    def __len__(self) -> int:
        return len(self.names)

    @property
    def keys(self) -> list[Key]:
        """The key of each key frame in annotations, box files and lists of excluded ones."""
        return list(map(moment_key, self.names, self.stamps.tolist()))

    @property
    def counts(self) -> np.ndarray:
        """The number of boxes of each key frame: int64 [n]."""
        return np.diff(self.offsets)

    @property
    def most(self) -> int:
        """The largest number of boxes of a key frame."""
        return int(self.counts.max(initial=0))

    def of(self, index: int) -> slice:
        """Return the slice of the boxes of one key frame."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def keep(self, kept: np.ndarray) -> "KeyFrames":
        """Return the boxes where `kept` is true, without the key frames that then have none."""
        rows = np.repeat(np.arange(len(self)), self.counts)
        counts = np.bincount(rows[kept], minlength=len(self))
        left = replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            boxes=self.boxes[kept],
            targets=self.targets[kept],
            scores=self.scores[kept],
            persons=self.persons[kept],
        )
        return left.pick(np.flatnonzero(counts))

    def pick(self, indices: Sequence[int] | np.ndarray) -> "KeyFrames":
        """Return the key frames at some indices, in that order."""
        rows = np.asarray(indices, np.int64)
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        boxes = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            seconds=self.seconds[rows],
            names=tuple(self.names[row] for row in rows.tolist()),
            stamps=self.stamps[rows],
            offsets=offsets,
            boxes=self.boxes[boxes],
            targets=self.targets[boxes],
            scores=self.scores[boxes],
            persons=self.persons[boxes],
        )
