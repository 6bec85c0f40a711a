"""What is printed before the first step: everything that decides a run, with its arithmetic."""

from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.videos import Videos
from videomae_jax.devices.host_memory import device_bytes, size_text, tree_bytes
from videomae_jax.devices.sharding import batch_devices
from videomae_jax.training.optim import Schedule


def batch_line(config: ConfigDict, mesh: Mesh) -> str:
    """Per-device clips x devices x parts = the batch of one optimizer step."""
    devices, parts = batch_devices(mesh), config.accumulation
    clips = config.batch_size * config.repeats
    return (
        f"{clips // (devices * parts)} clips per device x {devices} devices x {parts} accumulated "
        f"= {clips} clips a step"
        + (f", {config.repeats} of each video from one decode" * (config.repeats > 1))
    )


def rate_line(config: ConfigDict, plan: Schedule) -> str:
    """The way from the base rate to the actual one."""
    base = config.base_lr
    product = f"{base:g} x {config.batch_size} / 256 = " if base else ""
    layers = f"; x {config.layer_decay:g} from each block to the one below"
    return (
        f"{product}{plan.peak_lr:.4g} after {plan.warmup_steps:,} warm-up steps, "
        f"then a cosine to {plan.final_lr:.3g}" + layers * (config.layer_decay < 1)
    )


def length_line(config: ConfigDict, plan: Schedule, examples: int) -> str:
    """How long the run is: in steps, in epochs and, where they are more, in views of a video."""
    epochs = plan.steps * config.batch_size / examples
    views = f", {epochs * config.repeats:,.1f} views of each" * (config.repeats > 1)
    return f"{plan.steps:,} steps = {epochs:,.1f} epochs of {examples:,} videos{views}"


def devices_line(mesh: Mesh) -> str:
    """How many of which devices, and their layout."""
    shape = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    processes = f" of {jax.process_count()} processes" * (jax.process_count() > 1)
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{processes} ({shape})"


def model_line(params: Any) -> str:
    """Parameters in all and of the encoder."""

    def millions(tree):
        return f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.4g} M"

    return f"{millions(params)} parameters, {millions(params['encoder'])} of them the encoder"


def memory_line(compiled: jax.stages.Compiled, batch: Any, *, prefetch: int) -> str:
    """What the compiled step needs on each device, and the batches in flight on the host."""
    stats = compiled.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    # Being filled, those ready in tf.data, and as many on their way to the devices.
    host = (1 + 2 * prefetch) * tree_bytes(batch) / jax.process_count()
    return (
        f"{size_text(device_bytes(stats))} per device (state and batch {size_text(arguments)}, "
        f"temporaries {size_text(temporaries)}); {size_text(host)} of batches per host"
    )


def data_line(train: Videos, held_out: Videos | None) -> str:
    """Where the videos come from."""
    rest = f"; held out: {len(held_out):,} of {held_out.name}" if held_out else "; none held out"
    return f"{len(train):,} of {train.name}{rest}"


def workdir_line(
    workdir: str, start: int, changes: dict[str, tuple[Any, Any]], *, init_from: str
) -> str:
    """Whether this is a new run, and what has changed in its config since if not."""
    if not start:
        return f"{workdir}, a new run" + (f" from {init_from}" if init_from else "")
    changed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changes.items())
    return f"{workdir}, going on from step {start:,}" + (f"; changed: {changed}" if changed else "")


def text(title: str, rows: dict[str, str]) -> str:
    """Align the rows under a title."""
    width = max(map(len, rows)) + 2
    return "\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())])
