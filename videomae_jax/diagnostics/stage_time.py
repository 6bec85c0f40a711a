"""Parts of a step by themselves: attention, the feed, and both together with the step."""

import functools
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.augment.resize import resize_clip
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.diagnostics.step_time import Bench
from videomae_jax.errors import UserError
from videomae_jax.models.attention import IMPLEMENTATIONS, attend, choose_implementation

COUNTS = (160, 1568, 3136)  # tokens: visible, of 16 frames, of 32 frames
HEAD_WIDTHS = (64, 80)
HEADS = 6
HOST_BATCHES = 4  # different ones, given again and again


def time_attention(*, batch: int, repeats: int, dtype: str) -> list[dict]:
    """Time every back end that runs here, in turns: milliseconds, medians, one row each."""
    platform = jax.default_backend()
    names = [name for name in IMPLEMENTATIONS[1:] if _fits(name, platform, dtype)]
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
        seconds = {key: [] for key in functions}
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


def _fits(name: str, platform: str, dtype: str) -> bool:
    try:
        choose_implementation(name, platform=platform, dtype=dtype)
    except UserError:
        return False
    return True


def time_feed(
    host_batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding, *, repeats: int
) -> float:
    """Return clips/s that reach the devices from batches that lie ready on the host."""
    clips = len(host_batch["video"])
    with DevicePrefetcher(_batches(host_batch, 1 + repeats), sharding=sharding) as feed:
        jax.block_until_ready(next(feed))
        began = time.perf_counter()
        for batch in feed:
            jax.block_until_ready(batch)
        return clips * repeats / (time.perf_counter() - began)


def time_resize(clips: np.ndarray, *, height: int, width: int, repeats: int) -> dict[str, float]:
    """Time the resizing of uint8 [B, F, H, W, C] on the host, in one thread, and on a device.

    Milliseconds a clip, medians: "host_ms", "device_ms", and of all threads together
    "host_cpu_ms", "device_cpu_ms". equal: the share of the values that are; most: the largest
    difference.
    """
    # Brings Pillow and PyAV, which all else here does without.
    from videomae_jax.data.samplers import resize_crop

    size = clips.shape[2:4]
    sizes, here = jnp.asarray([size] * len(clips)), jnp.asarray(clips)
    resize = jax.jit(jax.vmap(functools.partial(resize_clip, height=height, width=width)))
    resize = resize.lower(here, sizes).compile()
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


def time_end_to_end(bench: Bench, *, repeats: int) -> dict[str, float]:
    """Return clips/s of steps on fed batches, and the share of the time they waited for one."""
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


def _batches(host_batch: dict[str, np.ndarray], count: int):
    """Yield `count` batches that differ in the order of their pixels' rows."""
    made = [
        {**host_batch, "video": np.roll(host_batch["video"], shift, axis=2)}
        for shift in range(HOST_BATCHES)
    ]
    return itertools.islice(itertools.cycle(made), count)
