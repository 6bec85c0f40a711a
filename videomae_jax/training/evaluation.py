"""Score the held-out videos of a run."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.evaluation_batches import eval_batches
from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, pick_videos
from videomae_jax.devices.distributed import numbers_of_first
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import batch_sharding, batch_share
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Batch, Params, Task
from videomae_jax.training.online_knn import OnlineKnn
from videomae_jax.training.step import Rows, Steps, TrainState

# Metrics, how many videos could be read, and images uint8 [height, width, 3] by name.
Scores = tuple[dict[str, float], str, dict[str, np.ndarray]]


def evaluate(
    config: ConfigDict,
    task: Task,
    functions: Steps,
    state: TrainState,
    *,
    teacher: tuple[Params, ...] = (),
    videos: Videos,
    sampler: ClipSampler,
    mesh: Mesh,
    knn: OnlineKnn | None,
    stopped: Callable[[], bool],
) -> Scores | None:
    """Score every held-out video once; return (metrics, how many could be read, images).

    The metrics of the averaged weights of a run that has them have the prefix "ema_".
    teacher: its parameters, if the task has one. knn: adds its accuracy. stopped: called once per
    batch; when it returns True, all processes return None, because a run that is about to be
    killed has no time for an evaluation. Raises UserError if no video is readable.
    """
    weights = named_weights(state)
    bad = BadVideos(videos, max_share=1.0)
    totals: dict[str, dict[str, np.float64]] = {}
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in weights}
    pictures: dict[str, np.ndarray] | None = None
    with closing(_batches(config, videos, sampler, mesh=mesh, bad=bad)) as batches:
        for batch, numbers in batches:
            if stopped():
                return None
            if pictures is None:
                pictures = task.pictures(state.params, batch)
            for name, params in weights.items():
                sums, found = functions.evaluate(params, batch, *teacher)
                sums = {k: np.float64(v) for k, v in sums.items()}
                totals[name] = jax.tree.map(np.add, totals[name], sums) if name in totals else sums
                if found is not None:
                    rows[name].append(_kept_rows(found, numbers))
    if pictures is None or not totals[""]["count"]:
        raise UserError(f"held-out data: {bad}")
    unread = _count_unread(bad, videos)
    note = str(bad) if unread == len(bad) else f"{unread} of {bad.total} videos unreadable"
    note = note if unread else f"{len(videos):,} {videos.unit}"
    scores: dict[str, float] = {}
    for name, sums in totals.items():
        metrics: dict[str, Any] = dict(task.summarize(sums))
        if task.score:
            metrics |= task.score(videos, *_join(rows[name]))
        scores |= {
            name + key: float(value)
            for key, value in metrics.items()
            if not (name and key.startswith("teacher_"))  # once, as they are the same
        }
    if knn:
        more = knn(weights, stopped=stopped)
        if more is None:
            return None
        scores |= more
    return scores, note, pictures


def _count_unread(bad: BadVideos, videos: Videos) -> int:
    """Return how many videos some process could not read; several may read the same."""
    own = np.array([path in bad.reasons for path in dict.fromkeys(videos.paths)])
    return int(multihost_utils.process_allgather(own).reshape(-1, len(own)).any(axis=0).sum())


def _batches(
    config: ConfigDict, videos: Videos, sampler: ClipSampler, *, mesh: Mesh, bad: BadVideos
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    """Yield every video once, in global arrays, with the number of each id in the list."""
    share, shares = batch_share(mesh)
    for indices, of_one_shape in sampler.groups(videos, numbers_of_first):
        batches = eval_batches(
            pick_videos(videos, indices),
            sampler=of_one_shape,
            batch_size=config.batch_size * config.repeats,
            seed=config.seed,
            bad=bad,
            process_index=share,
            process_count=shares,
            threads=config.data.threads or None,
        )
        with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as feed:
            for batch in feed:
                yield batch, np.array(indices)


def _kept_rows(found: Rows, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in the list, int64 [n], and the values, [n, ...], of what is there.

    Absent boxes are most of a batch: kept for all of AVA, they would take ten times the memory.
    """
    ids, kept, values = jax.device_get(found)
    return numbers[ids[np.nonzero(kept)[0]]], values[kept]


def _join(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers and the values of all batches, by ascending number."""
    ids, values = map(np.concatenate, zip(*rows, strict=True))
    order = np.argsort(ids, kind="stable")
    return ids[order].astype(np.int64), values[order]


def named_weights(state: TrainState) -> dict[str, Params]:
    """Return the weights to evaluate, by the prefix of their metrics."""
    if state.ema is None:
        return {"": state.params}
    return {"": state.params, "ema_": state.ema}
