"""Features of windows of videos, in batches over the devices of this process."""

from collections.abc import Iterator
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh

from videomae_jax.devices.sharding import batch_devices, batch_sharding, state_sharding
from videomae_jax.errors import UserError
from videomae_jax.inference.network import Network, outputs
from videomae_jax.inference.windows import Window
from videomae_jax.tasks.task import Params

Numbered = tuple[int, Window]


def window_outputs(
    network: Network,
    params: Params,
    windows: Iterator[Numbered],
    *,
    name: str,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[tuple[list[Numbered], np.ndarray]]:
    """Yield windows in batches with one of `infer.outputs` of each, float32 [b, ...].

    windows: (id, window). batch_size: windows, on all devices of the mesh; the last batch is
    filled up, so all have one shape. A batch is read while the one before is computed. On
    CPUs neither the batch nor the number of devices changes a bit.
    """
    check_batch(batch_size, mesh)
    split = batch_sharding(mesh)

    def step(params, video):
        return outputs(network, params, video)[name]

    with jax.set_mesh(mesh):
        sharding = state_sharding(params, mesh)
        params = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, sharding)
        step = jax.jit(step, in_shardings=(sharding, split), out_shardings=split)
    # XLA has other kernels for a batch of one, with other roundings.
    filled = max(batch_size, 2 * batch_devices(mesh))
    before = None
    while rows := list(islice(windows, batch_size)):
        video = np.zeros([filled, *rows[0][1].clip.shape], np.uint8)
        video[: len(rows)] = [window.clip for _, window in rows]
        with jax.set_mesh(mesh):
            result = step(params, jax.device_put(video, split))
        if before:
            yield before[0], np.asarray(before[1])[: len(before[0])]
        before = rows, result
    if before:
        yield before[0], np.asarray(before[1])[: len(before[0])]


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError unless every device gets as many of a batch."""
    unit = batch_devices(mesh)
    if batch_size < 1 or batch_size % unit:
        legal = max(unit, batch_size // unit * unit)
        raise UserError(f"batch {batch_size} is not divisible by {unit} devices: use {legal}")
