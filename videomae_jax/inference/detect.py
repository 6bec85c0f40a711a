"""Find the actions of the people in a video, given boxes around them at some moments."""

import functools
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.annotations import read_film_detections
from videomae_jax.data.decode import UnreadableVideo, open_frames, read_seconds
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.samplers import KeyFrameSampler
from videomae_jax.data.sampling import make_choice
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.inference.engine import data_mesh, run_windows
from videomae_jax.inference.network import check_detector, class_names
from videomae_jax.inference.windows import Window, cut_windows, read_windows
from videomae_jax.models.detector import VideoDetector
from videomae_jax.progress import Progress
from videomae_jax.tasks.detect import box_logits, eval_sampler, lowest_score
from videomae_jax.tasks.task import Batch, Params

WINDOWS = 4  # in a batch, on each device
FAR = 0.1  # seconds between boxes and their key time that are worth a note
NO_RNG = np.random.default_rng(0)  # of evaluation clips, which are not random
WHOLE = "whole"  # in the place of a file of boxes
# What `detect` takes as boxes: a file, "whole", or rows of second, x1, y1, x2, y2[, score].
Boxes = str | os.PathLike[str] | Sequence[Sequence[float]] | np.ndarray


class Detection(NamedTuple):
    """A person at a moment of a video, and what they do.

    seconds: from the first frame of the video. box: x1, y1, x2, y2 as fractions of the width and
    the height. person: the score of the person detector, 1 if there was none. actions: the score
    of every class, 0 to 1, in the order of their ids; several actions may be true at once.
    """

    seconds: float
    box: tuple[float, float, float, float]
    person: float
    actions: dict[str, float]


class Moment(NamedTuple):
    """All people at a key time. stamp: its second in the file of boxes. name: of the video."""

    name: str
    stamp: float
    detections: list[Detection]


def detect(
    network: VideoDetector,
    params: Params,
    config: ConfigDict,
    path: str,
    boxes: Boxes,
    *,
    source: str,
    every: float = 1.0,
    min_score: float | None = None,
    batch_size: int | None = None,
) -> Generator[Moment, None, None]:
    """Yield the people of a video at its key times, in the order of time.

    Key times are the multiples of `every` seconds that have boxes. Boxes at other times go to the
    nearest key time within half a step; of several such times only the nearest counts. The clip
    around a key time is that of evaluation. source: the name of the model in messages.
    min_score: lowest score of a person, None for that of the recipe. batch_size: clips on all
    devices of this process, None for 4 on each. What is not used is reported on standard error.
    Raises UserError if the video cannot be read, has no boxes, or too many at once.
    """
    check_detector(config, source)
    least = lowest_score(config, min_score)
    try:
        end = float(read_seconds(path)[-1])
        moments, notes = _plan(boxes, path, end=end, every=every, min_score=least)
        reader = _ClipReader(config, path, moments)
    except UnreadableVideo as error:
        raise UserError(f"cannot read {path}: {error}") from None
    for note in notes:
        print(f"boxes: {note}", file=sys.stderr)
    videos = Videos((path,), None, None, path)
    bad = BadVideos(videos, max_share=1.0)
    mesh = data_mesh(jax.local_devices())
    batches = run_windows(
        _box_step(network, config.boxes.whole, tuple(config.boxes.extend)),
        params,
        read_windows(videos, [0], sampler=reader, first=0, bad=bad, threads=1),
        batch_size=WINDOWS * mesh.size if batch_size is None else batch_size,
        mesh=mesh,
        more=reader.persons,
    )
    names = class_names(config)
    progress = Progress(len(moments))
    with closing(batches):
        for rows, scores in batches:
            for (_, window), row in zip(rows, scores, strict=True):
                progress.close()
                yield _moment(moments, window.number, row, names)
            done = window.number + 1
            of = f"key time {done:,} of {len(moments):,}"
            progress.show(done, count=done, unit="clips", of=of)
    progress.close()
    if bad:
        raise UserError(f"cannot read {path}: {bad.reasons[path]}")


@functools.lru_cache(maxsize=8)
def _box_step(
    network: VideoDetector, whole: bool, extend: tuple[float, float]
) -> Callable[[Params, Batch], jax.Array]:
    """Return a step for `run_windows`, the same function again for the same arguments.

    So `Model.detect` compiles it for the first video only.
    """

    def step(params: Params, batch: Batch) -> jax.Array:
        return jax.nn.sigmoid(box_logits(network, params, batch, whole=whole, extend=extend))

    return step


def nearest(times: np.ndarray, moments: np.ndarray, *, within: float) -> np.ndarray:
    """Return which of some increasing times is nearest to each moment, the earlier of equals.

    int64, the shape of `moments`; -1 where none is at most `within` seconds away.
    """
    if not len(times):
        return np.full(len(moments), -1)
    right = np.searchsorted(times, moments).clip(max=len(times) - 1)
    left = (right - 1).clip(min=0)
    # Times are read from text and computed from frame rates: equal ones differ in the last bits.
    after = np.abs(times[right] - moments) < np.abs(times[left] - moments) - 1e-6
    found = np.where(after, right, left)
    return np.where(np.abs(times[found] - moments) <= within + 1e-6, found, -1)


def _moment(moments: KeyFrames, index: int, scores: np.ndarray, names: Sequence[str]) -> Moment:
    detections = [
        Detection(
            seconds=float(moments.seconds[index]),
            box=tuple(box),
            person=person,
            actions=dict(zip(names, actions, strict=True)),
        )
        for box, person, actions in zip(
            moments.boxes[moments.of(index)].tolist(),
            moments.scores[moments.of(index)].tolist(),
            scores.tolist(),
            strict=False,  # absent boxes fill up a batch
        )
    ]
    return Moment(moments.names[index], float(moments.stamps[index]), detections)


def _plan(
    boxes: Boxes, path: str, *, end: float, every: float, min_score: float
) -> tuple[KeyFrames, list[str]]:
    """Return the key times that have boxes, and what was left out. end: of the video."""
    if not (every > 0 and math.isfinite(every)):
        raise UserError(f"key times {every:g} s apart: use more than 0, such as 1")
    if isinstance(boxes, str) and boxes == WHOLE:
        times = np.arange(max(1, math.ceil(end / every - 1e-6))) * every
        whole = np.tile([0, 0, 1, 1, 1.0], (len(times), 1))
        return _group(np.column_stack([times, whole]), Path(path).stem), []
    if isinstance(boxes, str | os.PathLike):
        source = os.fspath(boxes)
        given = read_film_detections(source, path)
    else:
        source = "boxes"
        given = _group(_check_rows(boxes), Path(path).stem)
    notes = list(given.notes)
    if not len(given.boxes):
        raise UserError(f"{source} has no boxes of {path}")
    found = given.keep(given.scores >= min_score)
    if not len(found):
        raise UserError(
            f"{source} has no boxes of {path} with a person score of {min_score:g} or more, the "
            f"highest is {given.scores.max():.3g}: use a lower --min-score"
        )
    if len(found.boxes) < len(given.boxes):
        low = len(given.boxes) - len(found.boxes)
        notes.append(
            f"{low:,} of {len(given.boxes):,} boxes left out, of a person score below {min_score:g}"
        )
    return _at_key_times(found, path, source, notes, end=end, every=every), notes


def _at_key_times(
    found: KeyFrames, path: str, source: str, notes: list[str], *, end: float, every: float
) -> KeyFrames:
    """Move boxes to the nearest multiple of `every` seconds; add notes about those not used."""
    inside = (found.seconds >= -1e-6) & (found.seconds <= end + 1e-6)
    if not inside.any():
        first, last = found.seconds.min(), found.seconds.max()
        raise UserError(
            f"{source} has boxes from {first:g} to {last:g} s, {path} ends at {end:.2f} s: do "
            "their seconds count from the start of this file?"
        )
    if not inside.all():
        notes.append(
            f"boxes at {(~inside).sum():,} of {len(inside):,} times left out, outside of the video "
            f"(0 to {end:.2f} s)"
        )
    found = found.pick(np.flatnonzero(inside))
    steps = np.ceil(found.seconds / every - 0.5 - 1e-6).astype(np.int64).clip(min=0)
    away = np.abs(found.seconds - steps * every)
    # The nearest time of each step; the earlier of equals.
    order = np.lexsort((found.seconds, away, steps))
    chosen = order[np.unique(steps[order], return_index=True)[1]]
    if len(chosen) < len(steps):
        notes.append(
            f"boxes at {len(chosen):,} of {len(steps):,} times used, the nearest to each key time "
            f"({every:g} s apart)"
        )
    farthest = away[chosen].max()
    if farthest > FAR:
        notes.append(
            f"boxes are up to {farthest:.2f} s away from their key times, multiples of "
            f"{every:g} s: use --every with the distance between their times"
        )
    moved = found.pick(chosen)
    return replace(
        moved,
        seconds=steps[chosen] * every,
        stamps=moved.stamps - moved.seconds + steps[chosen] * every,
    )


def _group(rows: np.ndarray, name: str) -> KeyFrames:
    """Return key frames of rows of second, x1, y1, x2, y2, score: float64 [n, 6]."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    seconds, counts = np.unique(rows[:, 0], return_counts=True)
    return KeyFrames(
        seconds=seconds,
        names=(name,) * len(seconds),
        stamps=seconds,
        offsets=np.append(0, np.cumsum(counts)),
        boxes=rows[:, 1:5].astype(np.float32),
        targets=np.zeros([len(rows), 0], bool),
        scores=rows[:, 5].astype(np.float32),
        persons=np.full(len(rows), -1, np.int64),
    )


def _check_rows(boxes: Any) -> np.ndarray:
    """Return boxes as float64 [n, 6], with a score of 1 for those that have none."""
    given = [list(np.atleast_1d(row)) for row in boxes]
    if not given or {len(row) for row in given} - {5, 6}:
        raise UserError(
            "boxes are a file, or rows of second, x1, y1, x2, y2 and, if known, the score of the "
            f"person; these are {len(given)} rows of {sorted({len(row) for row in given})} numbers"
        )
    rows = np.array([[*row, 1.0][:6] for row in given], np.float64)
    corners = rows[:, 1:5]
    if not np.isfinite(rows).all() or corners.max() > 1.5 or corners.min() < -0.5:
        raise UserError(
            f"boxes have corners from {corners.min():g} to {corners.max():g}: give fractions, x "
            "divided by the width and y by the height"
        )
    rows[:, 1:5] = corners.clip(0, 1)
    empty = (rows[:, 1] >= rows[:, 3]) | (rows[:, 2] >= rows[:, 4])
    if empty.any():
        raise UserError(
            f"box {rows[empty.argmax(), 1:5].tolist()} at {rows[empty.argmax(), 0]:g} s is empty: "
            "give x1, y1, x2, y2 with x1 < x2 and y1 < y2"
        )
    return rows


class _ClipReader:
    """Reads the evaluation clip around each key time, in one pass over the video."""

    def __init__(self, config: ConfigDict, path: str, moments: KeyFrames):
        targets = np.zeros([len(moments.boxes), config.model.classes], bool)
        self._moments = replace(moments, targets=targets)
        paths = (path,) * len(moments)
        self._videos = Videos(paths, None, None, path, key_frames=self._moments)
        [(_, sampler)] = eval_sampler(config).groups(self._videos)  # raises for too many boxes
        self._sampler = cast(KeyFrameSampler, sampler)
        self._size = self._sampler.scaled(*self._videos.read_size(0)[::-1])
        self._box = (0, 0, *self._size)

    def __call__(self, path: str, first: int = 0) -> Iterator[Window]:
        """Yield the clips from key time `first` on."""
        with open_frames(path, channels=self._sampler.channels) as (seconds, read):
            chosen = [self._choose(index, seconds) for index in range(len(self._videos))]
            yield from cut_windows(np.stack(chosen), seconds, read, self._resize, first=first)

    def persons(self, window: Window) -> dict[str, np.ndarray]:
        """Return what a row of the batch has beside the clip, see `tasks.detect.build_task`."""
        found = self._sampler.find_persons(
            self._moments, window.number, self._size, self._box, NO_RNG
        )
        size = np.array(self._size[::-1], np.int32)
        return {"boxes": found["boxes"], "present": found["present"], "size": size}

    def _choose(self, index: int, seconds: np.ndarray) -> np.ndarray:
        choose = self._sampler.choose(self._videos, index, [NO_RNG])
        return make_choice(choose, len(seconds) - 1, lambda: seconds)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        return replace(self._sampler, frames=1).cut(image[None], [self._box])[0]
