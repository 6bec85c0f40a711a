"""The test of a classifier: every video in several views, whose probabilities are averaged."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.data.bad import BadVideos
from videomae_jax.data.clips import ViewSample
from videomae_jax.data.feed import Feed
from videomae_jax.data.pipeline import eval_batches
from videomae_jax.data.sources import Videos
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Params
from videomae_jax.training.sharding import batch_devices, batch_sharding, state_sharding


class Predictions(NamedTuple):
    """What a classifier says of the videos that could be read, in the order of their ids.

    ids: int64 [n], each once. probabilities: float32 [n, classes].
    """

    ids: np.ndarray
    probabilities: np.ndarray


def predict_views(
    predict: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    videos: Videos,
    *,
    sample: ViewSample,
    batch_size: int,
    mesh: Mesh,
    threads: int | None,
    bad: BadVideos,
) -> Predictions:
    """Show every video once to a classifier, all its views together.

    predict: (parameters, video uint8 [B, V, F, H, W, C]) -> probabilities [B, classes].
    batch_size: videos, on all devices. Unreadable videos go to `bad`, none takes their place.
    """
    if batch_size < 1 or batch_size % batch_devices(mesh):
        unit = batch_devices(mesh)
        legal = max(unit, batch_size // unit * unit)
        raise UserError(f"batch {batch_size} is not divisible by {unit} devices: use {legal}")
    replicated, split = NamedSharding(mesh, P()), batch_sharding(mesh)

    def step(params, batch):
        return batch["id"], batch["valid"], predict(params, batch["video"])

    batches = eval_batches(
        videos,
        sample=sample,
        batch_size=batch_size,
        seed=0,  # of no use: test clips are not drawn
        bad=bad,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=threads,
    )
    ids, rows = [], []
    with jax.set_mesh(mesh), Feed(batches, sharding=split) as feed:
        sharding = state_sharding(params, mesh)
        params = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, sharding)
        step = jax.jit(step, in_shardings=(sharding, split), out_shardings=replicated)
        for batch in feed:
            # By the id that travels with the clip: names may repeat, batches may be partial.
            numbers, valid, probabilities = jax.device_get(
                step(params, {key: batch[key] for key in ("video", "id", "valid")})
            )
            ids.append(numbers[valid].astype(np.int64))
            rows.append(probabilities[valid])
    return Predictions(np.concatenate(ids), np.concatenate(rows))
