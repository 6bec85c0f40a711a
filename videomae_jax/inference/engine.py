"""Run a model over all videos of a list, or all windows of them, on any number of devices."""

import functools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.data.evaluation_batches import eval_batches
from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import (
    batch_devices,
    batch_sharding,
    batch_share,
    make_mesh,
    state_sharding,
)
from videomae_jax.errors import divide_batch
from videomae_jax.inference.network import Network, outputs
from videomae_jax.inference.windows import Window
from videomae_jax.tasks.task import Batch, Params

NumberedWindow = tuple[int, Window]


class Predictions(NamedTuple):
    """Predictions for the videos that could be read, in the order of their ids.

    ids: int64 [n], positions in the list, without repetition. values: a tree of arrays
    [n, ...], as the model returns it.
    """

    ids: np.ndarray
    values: Any


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh that splits only the batch, over these devices; None: all devices."""
    return make_mesh(dict(data=-1, fsdp=1, tensor=1), devices)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError unless a batch splits evenly over the devices of a mesh."""
    unit = batch_devices(mesh)
    divide_batch(batch_size, unit, by=f"{unit} devices")


def place_params(params: Params, mesh: Mesh) -> Params:
    """Put parameters on the devices of a mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.device_put(np.asarray(leaf), sharding),
        params,
        state_sharding(params, mesh),
    )


def predict_videos(
    predict: Callable[[Params, jax.Array], Any], params: Params, videos: Videos, **options: Any
) -> Predictions:
    """Run a model once over every video; see `predict_batches`."""
    return join_predictions(predict_batches(predict, params, videos, **options))


def predict_batches(
    predict: Callable[[Params, jax.Array], Any],
    params: Params,
    videos: Videos,
    *,
    mesh: Mesh,
    **options: Any,
) -> Generator[Predictions, None, None]:
    """Run a model once over every video, batch by batch; see `jit_predict` and `run_batches`."""
    with jax.set_mesh(mesh):
        yield from run_batches(
            jit_predict(predict, params, mesh),
            place_params(params, mesh),
            videos,
            mesh=mesh,
            **options,
        )


def jit_predict(
    predict: Callable[[Params, jax.Array], Any], params: Params, mesh: Mesh
) -> jax.stages.Wrapped:
    """Return a jitted function (parameters, batch) -> (ids, whether readable, predictions).

    predict: (parameters, video uint8 [B, ...]) -> a tree of arrays [B, ...]. See `jit_batch`.
    """
    return jit_batch(lambda params, batch: predict(params, batch["video"]), params, mesh)


def jit_batch(
    predict: Callable[[Params, Batch], Any], params: Params, mesh: Mesh
) -> jax.stages.Wrapped:
    """Return a jitted function (parameters, batch) -> (ids, whether readable, predictions).

    predict: (parameters, the arrays of the sampler's `spec`) -> a tree of arrays [B, ...].
    params: the parameters, in the layout of `state_sharding`, or their shapes. The results are
    replicated on every process.
    """

    def step(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, Any]:
        return batch["id"], batch["valid"], predict(params, batch)

    return jax.jit(
        step,
        in_shardings=(state_sharding(params, mesh), batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, P()),
    )


def run_batches(
    step: jax.stages.Wrapped,
    params: Params,
    videos: Videos,
    *,
    sampler: ClipSampler,
    batch_size: int,
    mesh: Mesh,
    threads: int | None,
    bad: BadVideos,
    start_batch: int = 0,
) -> Generator[Predictions, None, None]:
    """Run a step of `jit_batch` once over every video, with all its views together.

    sampler: returns one clip or all views of a video, uint8 `sampler.shape`. batch_size: videos
    on all devices. threads: decoders, None for one per core. bad: records the unreadable videos,
    which are not replaced. start_batch: the first batch to compute; later batches do not depend
    on it. Raises UserError if a batch does not split evenly over the devices.
    """
    check_batch(batch_size, mesh)
    index, count = batch_share(mesh)
    batches = eval_batches(
        videos,
        sampler=sampler,
        batch_size=batch_size,
        seed=0,  # unused: evaluation clips are not random
        bad=bad,
        process_index=index,
        process_count=count,
        threads=threads,
        start_step=start_batch,
    )
    with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as prefetcher:
        for batch in prefetcher:
            # Videos are known by their ids: paths may repeat, and batches may be partial.
            ids, valid, values = jax.device_get(
                step(params, {key: batch[key] for key in (*sampler.spec, "id", "valid")})
            )
            values = jax.tree.map(lambda value: value[valid], values)  # noqa: B023
            yield Predictions(ids[valid].astype(np.int64), values)


def collect_batches(*arguments: Any, stopped: Callable[[], bool], **options: Any) -> Predictions:
    """Join the batches of `run_batches`, until the last one or until `stopped()` is true."""
    found = []
    with closing(run_batches(*arguments, **options)) as batches:
        for predictions in batches:
            found.append(predictions)
            if stopped():
                break
    return join_predictions(found)


def join_predictions(batches: Iterable[Predictions]) -> Predictions:
    """Concatenate one batch or more."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def predict_windows(
    network: Network,
    params: Params,
    windows: Generator[NumberedWindow, None, None],
    *,
    name: str,
    batch_size: int,
    mesh: Mesh,
) -> Generator[tuple[list[NumberedWindow], np.ndarray], None, None]:
    """Yield windows in batches with one entry of `network.outputs` for each, float32 [b, ...].

    windows: (id of the video, window); the generator is closed at the end. name: "features",
    "steps", "tokens" or "logits". batch_size: windows on all devices of the mesh. mesh: of
    devices of this process only. Windows are read while the previous batch is computed. On CPUs
    the results do not depend on the batch size or the number of devices, bit for bit.
    """
    step = _output_step(network, name)
    return run_windows(step, params, windows, batch_size=batch_size, mesh=mesh)


def _padded_rows(rows: int, batch_size: int, devices: int) -> int:
    """Return the size of a batch that holds `rows`, so that few windows are not a whole batch.

    A power of two on each device or the whole batch, so that few sizes are compiled. At least two
    on each device: XLA's kernels for a batch of one round differently.
    """
    power = 2 ** math.ceil(math.log2(rows / devices)) * devices
    return max(min(power, batch_size), 2 * devices)


@functools.lru_cache(maxsize=8)
def _output_step(network: Network, name: str) -> Callable[[Params, Batch], jax.Array]:
    """Return a step for `run_windows`, the same function again for the same arguments."""
    return lambda params, batch: outputs(network, params, batch["video"])[name]


def run_windows(
    step: Callable[[Params, Batch], jax.Array],
    params: Params,
    windows: Generator[NumberedWindow, None, None],
    *,
    batch_size: int,
    mesh: Mesh,
    more: Callable[[Window], dict[str, np.ndarray]] = lambda window: {},
) -> Generator[tuple[list[NumberedWindow], np.ndarray], None, None]:
    """Yield windows in batches with `step(params, batch)` for each, [b, ...].

    step: compiled once for each shape of a batch; another function is compiled again. more: what
    a row of the batch has in addition to the clip, "video"; rows that only fill up a batch are
    zeros. The other arguments are those of `predict_windows`.
    """
    check_batch(batch_size, mesh)
    devices = batch_devices(mesh)
    split = batch_sharding(mesh)
    read: deque[list[NumberedWindow]] = deque()

    def batches() -> Iterator[dict[str, np.ndarray]]:
        padded = 0
        with closing(windows):
            while rows := list(islice(windows, batch_size)):
                padded = padded or _padded_rows(len(rows), batch_size, devices)
                parts = [{"video": window.clip, **more(window)} for _, window in rows]
                batch = {}
                for key, leaf in parts[0].items():
                    batch[key] = np.zeros([padded, *leaf.shape], leaf.dtype)
                    batch[key][: len(rows)] = [part[key] for part in parts]
                read.append(rows)
                yield batch

    with jax.set_mesh(mesh):
        params = place_params(params, mesh)
        sharding = state_sharding(params, mesh)
        jitted = jax.jit(step, in_shardings=(sharding, split), out_shardings=split)
    with DevicePrefetcher(batches(), sharding=split) as prefetcher:
        for batch in prefetcher:
            with jax.set_mesh(mesh):
                values = np.asarray(jitted(params, batch))
            rows = read.popleft()
            yield rows, values[: len(rows)]
