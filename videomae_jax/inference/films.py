"""Draw the actions found in a video on a copy of it."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from videomae_jax.data.decode import open_frames, read_facts
from videomae_jax.data.encode import FilmWriter
from videomae_jax.drawing import GREY, Label, class_colour, render_boxes
from videomae_jax.inference.detect import Detection, Moment, nearest
from videomae_jax.progress import Progress


def write_film(
    path: str,
    out: str,
    moments: Sequence[Moment],
    *,
    every: float,
    threshold: float,
) -> int:
    """Copy a video with the boxes and actions of every key time drawn; return its frames.

    moments: in the order of time. A frame shows the nearest one, none if that is more than half
    of `every` seconds away. Frames are read, drawn and written one by one. The copy is H.264,
    with the size and the times of the original, upright, without sound. threshold: the lowest
    score of an action that is written. Raises UnreadableVideo, and UserError if the file cannot
    be written.
    """
    facts = read_facts(path)
    keys = np.array([moment.detections[0].seconds for moment in moments])
    boxes = [np.array([found.box for found in moment.detections]) for moment in moments]
    labels = [_labels(moment.detections, threshold) for moment in moments]
    with open_frames(path) as (seconds, read):
        count = len(seconds) - 1
        frames = read(list(range(count)))
        first = next(frames)
        height, width = first.shape[:2]
        progress = Progress(count)

        @functools.lru_cache(maxsize=1)
        def render(key: int) -> tuple[np.ndarray, np.ndarray]:
            return render_boxes(boxes[key], labels[key], height=height, width=width)

        with FilmWriter(
            out,
            height=height,
            width=width,
            rate=count / float(seconds[-1]),
            pixel_aspect=facts.pixel_aspect,
        ) as film:
            chosen = nearest(keys, seconds[:-1], within=every / 2).tolist()
            for index, frame in enumerate(itertools.chain([first], frames)):
                if chosen[index] >= 0:
                    drawn, where = render(chosen[index])
                    frame = np.where(where, drawn, frame)
                film.add(frame, start=float(seconds[index]), end=float(seconds[index + 1]))
                progress.show(
                    index + 1,
                    count=index + 1,
                    unit="frames",
                    of=f"frame {index + 1:,} of {count:,}",
                )
        progress.close()
    return count


def _labels(detections: Sequence[Detection], threshold: float) -> list[list[Label]]:
    """Return the lines to write at each box: actions by score; the person's score without any."""
    drawn = []
    for found in detections:
        actions = [
            (score, Label(f"{name} {score:.2f}", class_colour(index)))
            for index, (name, score) in enumerate(found.actions.items())
            if score >= threshold
        ]
        labels = [label for _, label in sorted(actions, key=lambda action: -action[0])]
        drawn.append(labels or [Label(f"person {found.person:.2f}", GREY)])
    return drawn
