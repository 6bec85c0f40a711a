"""What a model makes of every video of a list, each once, whatever the devices."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.data.pipeline import eval_batches
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import (
    batch_devices,
    batch_sharding,
    batch_share,
    state_sharding,
)
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Params


class Predictions(NamedTuple):
    """What a model says of the videos that could be read, in the order of their ids.

    ids: int64 [n], each once. values: arrays [n, ...], in the tree that the model returns.
    """

    ids: np.ndarray
    values: Any


def predict_views(
    predict: Callable[[Params, jax.Array], Any], params: Params, videos: Videos, **options: Any
) -> Predictions:
    """Show every video once to a model; see `predict_batches`."""
    return join_views(predict_batches(predict, params, videos, **options))


def predict_batches(
    predict: Callable[[Params, jax.Array], Any],
    params: Params,
    videos: Videos,
    *,
    sampler: Callable,
    batch_size: int,
    mesh: Mesh,
    threads: int | None,
    bad: BadVideos,
    start_batch: int = 0,
) -> Iterator[Predictions]:
    """Show every video once to a model, batch by batch; see `jit_views` and `view_batches`."""
    with jax.set_mesh(mesh):
        sharding = state_sharding(params, mesh)
        params = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, sharding)
        yield from view_batches(
            jit_views(predict, params, mesh),
            params,
            videos,
            sampler=sampler,
            batch_size=batch_size,
            mesh=mesh,
            threads=threads,
            bad=bad,
            start_batch=start_batch,
        )


def jit_views(
    predict: Callable[[Params, jax.Array], Any], params: Params, mesh: Mesh
) -> Callable[[Params, dict[str, jax.Array]], tuple]:
    """Return a jitted (parameters, batch) -> (ids, whether they were read, what is predicted).

    predict: (parameters, video uint8 [B, ...]) -> arrays [B, ...]. params: in the layout of
    `state_sharding`, or their shapes. What comes back is whole on every process.
    """

    def step(params, batch):
        return batch["id"], batch["valid"], predict(params, batch["video"])

    return jax.jit(
        step,
        in_shardings=(state_sharding(params, mesh), batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, P()),
    )


def view_batches(
    step: Callable[[Params, dict[str, jax.Array]], tuple],
    params: Params,
    videos: Videos,
    *,
    sampler: Callable,
    batch_size: int,
    mesh: Mesh,
    threads: int | None,
    bad: BadVideos,
    start_batch: int = 0,
) -> Iterator[Predictions]:
    """Run a step of `jit_views` over every video once, all its views together.

    sampler: (path, rng) -> uint8 of `sampler.shape`, all views or one clip. batch_size: videos,
    on all devices. Unreadable videos go to `bad`, none takes their place. start_batch: the
    first to compute; those after it are the same whatever it is.
    """
    if batch_size < 1 or batch_size % batch_devices(mesh):
        unit = batch_devices(mesh)
        legal = max(unit, batch_size // unit * unit)
        raise UserError(f"batch {batch_size} is not divisible by {unit} devices: use {legal}")
    index, count = batch_share(mesh)
    batches = eval_batches(
        videos,
        sampler=sampler,
        batch_size=batch_size,
        seed=0,  # of no use: test clips are not drawn
        bad=bad,
        process_index=index,
        process_count=count,
        threads=threads,
        start_step=start_batch,
    )
    with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as feed:
        for batch in feed:
            # By the id that travels with the clip: names may repeat, batches may be partial.
            numbers, valid, values = jax.device_get(
                step(params, {key: batch[key] for key in ("video", "id", "valid")})
            )
            values = jax.tree.map(lambda value: value[valid], values)  # noqa: B023
            yield Predictions(numbers[valid].astype(np.int64), values)


def collect_views(*arguments: Any, stopped: Callable[[], bool], **options: Any) -> Predictions:
    """Join the batches of `view_batches`; ends early, with what it has, where `stopped()`."""
    found = []
    with closing(view_batches(*arguments, **options)) as batches:
        for predictions in batches:
            found.append(predictions)
            if stopped():
                break
    return join_views(found)


def join_views(batches: Iterable[Predictions]) -> Predictions:
    """Put one batch or more together."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)
