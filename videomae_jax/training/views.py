"""What a model makes of every video of a list, each once, whatever the devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.data.bad import BadVideos
from videomae_jax.data.feed import Feed
from videomae_jax.data.pipeline import eval_batches
from videomae_jax.data.sources import Videos
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Params
from videomae_jax.training.sharding import (
    batch_devices,
    batch_sharding,
    batch_share,
    state_sharding,
)


class Predictions(NamedTuple):
    """What a model says of the videos that could be read, in the order of their ids.

    ids: int64 [n], each once. values: arrays [n, ...], in the tree that the model returns.
    """

    ids: np.ndarray
    values: Any


def predict_views(
    predict: Callable[[Params, jax.Array], Any],
    params: Params,
    videos: Videos,
    *,
    sample: Callable,
    batch_size: int,
    mesh: Mesh,
    threads: int | None,
    bad: BadVideos,
) -> Predictions:
    """Show every video once to a model; see `jit_views` and `collect_views`."""
    with jax.set_mesh(mesh):
        sharding = state_sharding(params, mesh)
        params = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, sharding)
        return collect_views(
            jit_views(predict, params, mesh),
            params,
            videos,
            sample=sample,
            batch_size=batch_size,
            mesh=mesh,
            threads=threads,
            bad=bad,
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


def collect_views(
    step: Callable[[Params, dict[str, jax.Array]], tuple],
    params: Params,
    videos: Videos,
    *,
    sample: Callable,
    batch_size: int,
    mesh: Mesh,
    threads: int | None,
    bad: BadVideos,
    stopped: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Run a step of `jit_views` over every video once, all its views together.

    sample: (path, rng) -> uint8 of `sample.shape`, all views or one clip. batch_size: videos,
    on all devices. Unreadable videos go to `bad`, none takes their place. Ends early, with
    what it has, where `stopped()`.
    """
    if batch_size < 1 or batch_size % batch_devices(mesh):
        unit = batch_devices(mesh)
        legal = max(unit, batch_size // unit * unit)
        raise UserError(f"batch {batch_size} is not divisible by {unit} devices: use {legal}")
    index, count = batch_share(mesh)
    batches = eval_batches(
        videos,
        sample=sample,
        batch_size=batch_size,
        seed=0,  # of no use: test clips are not drawn
        bad=bad,
        process_index=index,
        process_count=count,
        threads=threads,
    )
    ids, rows = [], []
    with Feed(batches, sharding=batch_sharding(mesh)) as feed:
        for batch in feed:
            # By the id that travels with the clip: names may repeat, batches may be partial.
            numbers, valid, values = jax.device_get(
                step(params, {key: batch[key] for key in ("video", "id", "valid")})
            )
            ids.append(numbers[valid].astype(np.int64))
            rows.append(jax.tree.map(lambda value: value[valid], values))  # noqa: B023
            if stopped():
                break
    return Predictions(np.concatenate(ids), jax.tree.map(lambda *x: np.concatenate(x), *rows))
