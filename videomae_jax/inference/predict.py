"""Name the actions in videos, window by window."""

from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.host import count_cores
from videomae_jax.inference.engine import data_mesh, predict_windows
from videomae_jax.inference.network import Network, check_classifier, class_names
from videomae_jax.inference.windows import Window, WindowSampler, read_windows
from videomae_jax.progress import Progress
from videomae_jax.tasks.classify import class_probabilities
from videomae_jax.tasks.task import Params

WINDOWS = 4  # in a batch, on each device
LIKELY = 0.5  # the classes of a model of several labels a video are those above it


class Likely(NamedTuple):
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


class WindowClasses(NamedTuple):
    """The most likely classes of one window.

    first_frame, last_frame: frame numbers, from 0. start, end: seconds. top: the most likely
    class first; of a model of several labels a video it may be empty.
    """

    first_frame: int
    last_frame: int
    start: float
    end: float
    top: list[Likely]


class VideoClasses(NamedTuple):
    """The most likely classes of a video, by the mean of the probabilities of its windows.

    error: the reason if the video cannot be read; `top` and `windows` are then empty.
    """

    video: str
    top: list[Likely]
    windows: list[WindowClasses]
    error: str | None = None


def predict(
    network: Network,
    params: Params,
    config: ConfigDict,
    videos: Videos,
    *,
    source: str,
    top: int | None = None,
) -> Generator[VideoClasses, None, None]:
    """Yield the classes of every video as soon as it is finished, unreadable videos last.

    source: the name of the model in messages. top: number of classes to return; None for up to
    5, or, of a model of several labels a video, those with a probability above LIKELY. Raises
    UserError if the model has no classes, or not `top` of them.
    """
    check_classifier(config, source)
    classes, clip = config.model.classes, config.clip
    if top is not None and not 1 <= top <= classes:
        raise UserError(f"--top {top}: use 1 to {classes}, the number of classes")
    multi_label = config.model.multi_label
    if top is None and not multi_label:
        top = min(5, classes)
    stride = clip.stride if clip.sampling == "dense" else None  # sparse: clips span the video
    sampler = WindowSampler(
        frames=clip.frames,
        stride=stride,
        hop=clip.frames * (stride or 1),
        height=clip.height,
        width=clip.width,
        channels=len(config.model.mean),
    )
    names = class_names(config)
    bad = BadVideos(videos, max_share=1.0)
    mesh = data_mesh(jax.local_devices())
    windows = read_windows(
        videos,
        list(range(len(videos))),
        sampler=sampler,
        first=0,
        bad=bad,
        threads=count_cores(),
    )
    batches = predict_windows(
        network,
        params,
        windows,
        name="logits",
        batch_size=WINDOWS * mesh.size,
        mesh=mesh,
    )
    found: dict[int, list[tuple[Window, np.ndarray]]] = {}
    progress = Progress(len(videos))
    done = 0
    with closing(batches):
        for rows, logits in batches:
            probabilities = np.asarray(class_probabilities(logits, multi_label=multi_label))
            for (number, window), row in zip(rows, probabilities, strict=True):
                found.setdefault(number, []).append((window, row))
                done += 1
                if window.number + 1 == window.total:
                    progress.close()
                    yield _classify(videos.paths[number], found.pop(number), names, top=top)
            progress.show(
                number + (window.number + 1) / window.total,
                count=done,
                unit="windows",
                of=f"video {number + 1:,} of {len(videos):,}",
            )
    progress.close()
    for path in videos.paths:
        if path in bad.reasons:
            yield VideoClasses(path, [], [], bad.reasons[path])


def _classify(
    path: str,
    found: list[tuple[Window, np.ndarray]],
    names: tuple[str, ...],
    *,
    top: int | None,
) -> VideoClasses:
    """Return the classes of a video from the probabilities of its windows.

    top: how many; None for those above LIKELY.
    """

    def best(probabilities: np.ndarray) -> list[Likely]:
        shown = int((probabilities > LIKELY).sum()) if top is None else top
        order = (-probabilities).argsort(kind="stable")[:shown]
        return [Likely(names[index], float(probabilities[index])) for index in order]

    windows = [
        WindowClasses(
            first_frame=int(window.frames[0]),
            last_frame=int(window.frames[-1]),
            start=window.seconds[0],
            end=window.seconds[1],
            top=best(probabilities),
        )
        for window, probabilities in found
    ]
    mean = np.mean([probabilities for _, probabilities in found], axis=0)
    return VideoClasses(path, best(mean), windows)
