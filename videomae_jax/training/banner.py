"""Format the settings of a run, with their arithmetic, to print before the first step."""

from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.videos import Videos
from videomae_jax.devices.host_memory import device_bytes, size_text, tree_bytes
from videomae_jax.devices.sharding import batch_devices
from videomae_jax.training.optim import Schedule
from videomae_jax.training.workdir import CLASSES, ClassRow

SHOWN = 12  # classes


def batch_line(config: ConfigDict, mesh: Mesh) -> str:
    """Return the clips of one step as clips per device x devices x accumulated parts."""
    devices = batch_devices(mesh)
    parts = config.accumulation
    clips = config.batch_size * config.repeats
    repeats = f", {config.repeats} of each video from one decode" if config.repeats > 1 else ""
    return (
        f"{clips // (devices * parts)} clips per device x {devices} devices x {parts} accumulated "
        f"= {clips} clips a step{repeats}"
    )


def rate_line(config: ConfigDict, schedule: Schedule) -> str:
    """Return the learning rate as base rate x batch / 256, and its schedule."""
    base = config.base_lr
    product = f"{base:g} x {config.batch_size} / 256 = " if base else ""
    layers = ""
    if config.layer_decay == 0:
        layers = "; the embedding and the blocks frozen"
    elif config.layer_decay < 1:
        layers = f"; x {config.layer_decay:g} from each block to the one below"
    return (
        f"{product}{schedule.peak_lr:.4g} after {schedule.warmup_steps:,} warm-up steps, "
        f"then a cosine to {schedule.final_lr:.3g}" + layers
    )


def length_line(config: ConfigDict, schedule: Schedule, examples: int, *, unit: str) -> str:
    """Return the length of the run in steps, epochs and, with repeats, views of each example."""
    epochs = schedule.steps * config.batch_size / examples
    views = f", {epochs * config.repeats:,.1f} views of each" if config.repeats > 1 else ""
    return f"{schedule.steps:,} steps = {epochs:,.1f} epochs of {examples:,} {unit}{views}"


def devices_line(mesh: Mesh) -> str:
    """Return the number and kind of the devices, and the sizes of the mesh."""
    shape = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{processes} ({shape})"


def model_line(params: Any) -> str:
    """Return the number of parameters of the model and of its encoder."""

    def millions(tree):
        return f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.4g} M"

    return f"{millions(params)} parameters, {millions(params['encoder'])} of them the encoder"


def memory_line(compiled: jax.stages.Compiled, batch: Any, *, prefetch: int) -> str:
    """Return the memory of the compiled step on each device, and of the batches on the host."""
    stats: Any = compiled.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    # One that is being filled, and `prefetch` each in tf.data and on their way to the devices.
    host = (1 + 2 * prefetch) * tree_bytes(batch) / jax.process_count()
    return (
        f"{size_text(device_bytes(stats))} per device (state and batch {size_text(arguments)}, "
        f"temporaries {size_text(temporaries)}); {size_text(host)} of batches per host"
    )


def data_line(train: Videos, held_out: Videos | None) -> str:
    """Return the source and number of the videos, or of the key frames."""
    rest = "; none held out"
    if held_out:
        rest = f"; held out: {len(held_out):,} {held_out.unit} of {held_out.name}"
    notes = "".join(f"; {note}" for note in train.notes)
    return f"{len(train):,} {train.unit} of {train.name}{rest}{notes}"


def classes_line(rows: list[ClassRow], *, unit: str = "videos", labelled: bool = True) -> str:
    """Return the classes, at most `SHOWN`, with how often they are trained on if that is known."""
    shown = ", ".join(f"{row.name} {row.train:,}" if labelled else row.name for row in rows[:SHOWN])
    more = f", ... all {len(rows)} in {CLASSES}" if len(rows) > SHOWN else ""
    return f"{shown}{more} (training {unit}{'' if labelled else ' have no labels'})"


def workdir_line(
    workdir: str, start: int, changes: dict[str, tuple[Any, Any]], *, init_from: str
) -> str:
    """Return whether the run is new or resumed, and what changed in its config."""
    if not start:
        return f"{workdir}, a new run" + (f" from {init_from}" if init_from else "")
    changed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changes.items())
    return f"{workdir}, going on from step {start:,}" + (f"; changed: {changed}" if changed else "")


def text(title: str, rows: dict[str, str]) -> str:
    """Return aligned rows under a title."""
    width = max(map(len, rows)) + 2
    return "\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())])
