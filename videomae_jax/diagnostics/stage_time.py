"""Time attention, transfer, resizing and augmentation alone, and steps fed from the host."""

import functools
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.augment.resize import resize_clip
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import batch_sharding, make_mesh
from videomae_jax.diagnostics.step_time import (
    Bench,
    Job,
    build_bench,
    job_config,
    random_batch,
)
from videomae_jax.models.attention import IMPLEMENTATIONS, attend, lacks
from videomae_jax.tasks import classify
from videomae_jax.tasks.build import canvas_size

COUNTS = (160, 1568, 3136)  # tokens: visible, of 16 frames, of 32 frames
HEAD_WIDTHS = (64, 80)
HEADS = 6
HOST_BATCHES = 4  # different batches, repeated in turn


def time_attention(*, batch: int, repeats: int, dtype: str) -> list[dict[str, Any]]:
    """Return one row per back end that runs here: median milliseconds, timed in turns."""
    platform = jax.default_backend()
    names = [n for n in IMPLEMENTATIONS[1:] if not lacks(n, platform=platform, dtype=dtype)]
    rows = []
    for count, width in itertools.product(COUNTS, HEAD_WIDTHS):
        keys = jax.random.split(jax.random.key(0), 4)
        shape = (batch, count, HEADS, width)
        arrays = [jax.random.normal(key, shape, jnp.dtype(dtype)) for key in keys]
        functions = {
            (name, kind): jax.jit(functools.partial(make, name)).lower(*arrays).compile()
            for name in names
            for kind, make in (("forward_ms", _forward), ("both_ms", _both))
        }
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in functions}
        for _ in range(1 + repeats):
            for key, function in functions.items():
                began = time.perf_counter()
                jax.block_until_ready(function(*arrays))
                seconds[key].append(time.perf_counter() - began)
        medians = {key: 1e3 * statistics.median(times[1:]) for key, times in seconds.items()}
        rows += [
            {
                "attention": name,
                "tokens": count,
                "head_width": width,
                **{kind: medians[name, kind] for kind in ("forward_ms", "both_ms")},
            }
            for name in names
        ]
    return rows


def _forward(name, q, k, v, grad):
    return attend(q, k, v, implementation=name)


def _both(name, q, k, v, grad):
    out, pull = jax.vjp(lambda *qkv: attend(*qkv, implementation=name), q, k, v)
    return out, *pull(grad)


def time_feed(
    host_batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding, *, repeats: int
) -> float:
    """Return the clips per second that reach the devices from batches in host memory."""
    clips = len(host_batch["video"])
    with DevicePrefetcher(_batches(host_batch, 1 + repeats), sharding=sharding) as feed:
        jax.block_until_ready(next(feed))
        began = time.perf_counter()
        for batch in feed:
            jax.block_until_ready(batch)
        return clips * repeats / (time.perf_counter() - began)


def time_job_feed(job: Job, *, repeats: int) -> dict[str, Any]:
    """Time the transfer of the batches of a job to the devices of this machine."""
    config = job_config(job)
    batch, mesh = random_batch(job, config), make_mesh(config.mesh)
    rate = time_feed(batch, batch_sharding(mesh), repeats=repeats)
    return {
        "clips_per_second": rate,
        "bytes_per_second": rate * batch["video"][0].nbytes,
        "environment": {"device": f"{mesh.size} x {jax.devices()[0].device_kind}"},
    }


def time_resize(clips: np.ndarray, *, height: int, width: int, repeats: int) -> dict[str, float]:
    """Time the resizing of uint8 [B, F, H, W, C] on the host, in one thread, and on a device.

    Returns median milliseconds per clip, "host_ms" and "device_ms", and the same in CPU time of all
    threads, "host_cpu_ms" and "device_cpu_ms"; "equal", the fraction of equal values; "most", the
    largest difference.
    """
    # Imports Pillow and PyAV, which nothing else here needs.
    from videomae_jax.data.resize import resize_crop

    size = clips.shape[2:4]
    sizes, here = jnp.asarray([size] * len(clips)), jnp.asarray(clips)
    resize_batch = jax.vmap(functools.partial(resize_clip, height=height, width=width))
    resize = jax.jit(resize_batch).lower(here, sizes).compile()
    box = (0, 0, size[1], size[0])

    def on_host():
        return np.stack([resize_crop(clip, box=box, width=width, height=height) for clip in clips])

    def on_device():
        return jax.block_until_ready(resize(here, sizes))

    result = {}
    for name, function in (("host", on_host), ("device", on_device)):
        seconds, cpu_seconds = [], []
        for _ in range(1 + repeats):
            began, cpu_began = time.perf_counter(), time.process_time()
            made = function()
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
        result[f"{name}_ms"] = 1e3 * statistics.median(seconds[1:]) / len(clips)
        result[f"{name}_cpu_ms"] = 1e3 * statistics.median(cpu_seconds[1:]) / len(clips)
    difference = np.abs(np.asarray(made).astype(np.int16) - on_host())
    return {**result, "equal": float((difference == 0).mean()), "most": int(difference.max())}


def time_job_resize(job: Job, *, repeats: int) -> dict[str, Any]:
    """Time the resizing of noise from the source size of a job's config to its clip size.

    Returns the times of `time_resize` and "source", the height and the width of the noise.
    """
    config = job_config(job)
    clip = config.clip
    source = canvas_size(clip)
    shape = (job.batch, clip.frames, *source, len(config.model.mean))
    clips = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    times = time_resize(clips, height=clip.height, width=clip.width, repeats=repeats)
    return {**times, "source": source}


def time_job_augment(job: Job, *, repeats: int) -> dict[str, Any]:
    """Time the augmentation of fine-tuning beside the step without it, in turns.

    Each repeat augments the batch with other draws. Returns medians of milliseconds per clip,
    "augment_ms" and "step_ms", and means of the CPU time of all threads, "augment_cpu_ms" and
    "step_cpu_ms"; "share", of the CPU time of both together; the temporaries of both in bytes;
    "canvas", the height and the width of the clips before the augmentation.
    """
    config = job_config(job)
    bench = build_bench(job)
    batch, canvas = random_batch(job, config), canvas_size(config.clip)
    shape = (*batch["video"].shape[:2], *canvas, batch["video"].shape[-1])
    batch["video"] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch["size"] = np.tile(np.array(canvas, np.int32), (job.batch, 1))
    with jax.set_mesh(make_mesh(config.mesh)):
        here = jax.device_put(batch, bench.sharding)
        keys = jax.random.split(jax.random.key(0), 1 + repeats)
        targets = jax.device_put(jnp.zeros([job.batch, config.model.classes]), bench.sharding)
        function = jax.jit(classify.make_batch_augment(config))
        augment = function.lower(here, keys[0], targets).compile()
    timed: dict[str, list[tuple[float, float]]] = {"augment": [], "step": []}
    for key in keys:
        for name in timed:
            began, cpu_began = time.perf_counter(), time.process_time()
            if name == "augment":
                jax.block_until_ready(augment(here, key, targets))
            else:
                bench.step(None)
            timed[name].append((time.perf_counter() - began, time.process_time() - cpu_began))
    result: dict[str, Any] = {"canvas": canvas, **bench.after()}
    for name, seconds in timed.items():
        wall, cpu = np.array(seconds[1:]).T
        result[f"{name}_ms"] = 1e3 * float(np.median(wall)) / job.batch
        result[f"{name}_cpu_ms"] = 1e3 * float(cpu.mean()) / job.batch
    both = result["augment_cpu_ms"] + result["step_cpu_ms"]
    stats: Any = augment.memory_analysis()
    return {
        **result,
        "share": result["augment_cpu_ms"] / both,
        "augment_temporary_bytes": stats.temp_size_in_bytes,
        "step_temporary_bytes": bench.facts["temporary_bytes"],
        "environment": {"device": bench.facts["device"]},
    }


def time_end_to_end(bench: Bench, *, repeats: int) -> dict[str, float]:
    """Return the clips per second of steps on fed batches, and the fraction of time they waited."""
    clips = len(bench.host_batch["video"])
    with DevicePrefetcher(_batches(bench.host_batch, 2 + repeats), sharding=bench.sharding) as feed:
        for _ in range(2):  # to warm up
            bench.step(next(feed))
        began, waited = time.perf_counter(), feed.waited
        losses = [bench.step(batch)[1] for batch in itertools.islice(feed, repeats)]
        seconds = time.perf_counter() - began
        return {
            "clips_per_second": clips * repeats / seconds,
            "waiting_share": (feed.waited - waited) / seconds,
            "loss": losses[-1],
        }


def _batches(host_batch: dict[str, np.ndarray], count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield `count` batches that differ in the order of their pixel rows."""
    made = [
        {**host_batch, "video": np.roll(host_batch["video"], shift, axis=2)}
        for shift in range(HOST_BATCHES)
    ]
    return itertools.islice(itertools.cycle(made), count)
