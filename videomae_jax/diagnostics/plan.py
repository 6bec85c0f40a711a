"""Memory, communication and time of a training step, by ahead-of-time compilation.

Bytes and collectives are read from the compiled program; FLOPs are in closed form. The times are
lower bounds from data sheets (`chips.py`), and an estimate that assumes a fraction of the peak.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.synthetic import synthetic_videos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.chips import Chip, find_chip
from videomae_jax.devices.host_memory import device_bytes
from videomae_jax.devices.sharding import check_training_batch, make_mesh
from videomae_jax.diagnostics.collectives import Collective, read_collectives
from videomae_jax.host import main_memory
from videomae_jax.tasks.build import has_teacher, open_videos
from videomae_jax.tasks.task import Task, TaskModule
from videomae_jax.training.optim import average_decay, make_optimizer, make_schedule, warmup_cosine
from videomae_jax.training.step import abstract_batch, jit_steps

# Assumed for all devices; one H200 reached 0.25 with ViT-S, 0.35 B, 0.41 L, 0.42 H
# (docs/performance.md).
MFU = 0.4
# The fraction of a GPU's memory that launch/env.sh gives to JAX. On TPUs the compiler itself
# reports what does not fit.
GPU_FRACTION = 0.92
# FLOPs of a step under each `run.remat`, relative to the closed form: "full" computes every block
# twice; "dots" repeats only the matrix products of attention, which are few.
RECOMPUTED = {"none": 1, "dots": 1, "full": 4 / 3}


class StepPlan(NamedTuple):
    """One optimizer step on a mesh: bytes and FLOPs per device, times in seconds.

    needed: bytes in total. capacity: bytes of the device, None if unknown; then `fits` is true if
    it compiled. kernels: custom calls of the program, with the number of call sites. The floors,
    lower bounds of the time, are None for devices that `chips.py` does not know.
    """

    clips: int  # per step, over all devices
    mesh: dict[str, int]
    device: str
    flops: float
    arguments: int | None  # state and batch; None if the compiler ran out of memory
    temporaries: int | None
    needed: int
    capacity: int | None
    fits: bool
    collectives: list[Collective]
    kernels: dict[str, int]
    compute_floor: float | None
    memory_floor: float | None
    network_floor: float | None

    def step_seconds(self, mfu: float) -> float | None:
        """Return the longer of computing at `mfu` and moving memory, plus the network."""
        compute, memory, network = self.compute_floor, self.memory_floor, self.network_floor
        if compute is None or memory is None or network is None:
            return None
        return max(compute / mfu, memory) + network


def prepare_config(
    config: ConfigDict, task_module: TaskModule, *, examples: int | None
) -> tuple[ConfigDict, Videos]:
    """Complete a config from its videos, or from `examples` videos that need not exist."""
    if config.data.train and not examples:
        config, videos, _ = task_module.prepare(config, *open_videos(config))
    else:
        count = max(examples or 0, config.batch_size)
        videos = synthetic_videos(count, labelled=not has_teacher(config))
        config, videos, _ = task_module.prepare(config, videos, None)
    return config, videos


def plan_step(
    config: ConfigDict,
    task_module: TaskModule,
    *,
    devices: list[jax.Device],
    hosts: list[int],
    examples: int,
) -> StepPlan:
    """Compile the step of a prepared config for `devices`, which need not exist.

    hosts: the slice or host of each device. Raises UserError if the devices do not fit the mesh or
    the batch.
    """
    mesh = make_mesh(config.mesh, devices)
    check_training_batch(config, mesh)
    device, clips = devices[0], config.batch_size * config.repeats
    chip = find_chip(device.device_kind)
    # The model chooses its kernels by the mesh in use.
    with jax.set_mesh(mesh):
        task = task_module.build_task(config)
        task.check_clips(clips // (mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation))
        traced = trace_step(config, task, mesh, clips=clips, examples=examples)
        lowered = traced.lower(lowering_platforms=(_platform(device),))
        compiled, needed = _compile(lowered)
    flops = task.train_flops * clips / mesh.size
    once = task.teacher.flops * clips / mesh.size if task.teacher else 0  # whatever `run.remat`
    step = StepPlan(
        clips=clips,
        mesh=dict(mesh.shape),
        device=device.device_kind,
        flops=flops,
        arguments=None,
        temporaries=None,
        needed=needed,
        capacity=_capacity(device, chip),
        fits=False,
        collectives=[],
        kernels={},
        compute_floor=(RECOMPUTED[config.run.remat] * (flops - once) + once) / chip.flops
        if chip
        else None,
        memory_floor=None,
        network_floor=None,
    )
    if compiled is None:
        return step
    stats: Any = compiled.memory_analysis()
    program = compiled.as_text() or ""
    host_of = dict(zip(devices, hosts, strict=True))
    collectives = read_collectives(program, hosts=[host_of[d] for d in mesh.devices.flat])
    usable = GPU_FRACTION if chip and device.platform == "gpu" else 1
    step = step._replace(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        fits=step.capacity is None or needed <= usable * step.capacity,
        collectives=collectives,
        kernels=dict(Counter(re.findall(r'custom_call_target="([^"]+)"', program)).most_common()),
    )
    if chip is None:
        return step
    # What is read or written at least once: arguments, results, and temporaries, which are both.
    moved = stats.argument_size_in_bytes + stats.output_size_in_bytes + 2 * stats.temp_size_in_bytes
    return step._replace(
        memory_floor=moved / chip.bandwidth,
        network_floor=sum(c.bytes / (chip.network if c.remote else chip.link) for c in collectives),
    )


def trace_step(
    config: ConfigDict, task: Task, mesh: Mesh, *, clips: int, examples: int
) -> jax.stages.Traced:
    """Trace the training step of a config on the mesh in use, without arrays.

    clips: of one step. examples: videos in an epoch.
    """
    schedule = make_schedule(config, examples=examples)
    steps = jit_steps(
        task,
        make_optimizer(config, task),
        warmup_cosine(schedule),
        mesh,
        seed=config.seed,
        accumulation=config.accumulation,
        ema_decay=average_decay(config, task, steps=schedule.steps),
    )
    several = "multi_label" in config.model and config.model.multi_label
    labels = np.zeros((1, config.model.classes), bool) if several else np.zeros(1, np.int32)
    batch = abstract_batch(task.samplers()[0], clips, mesh, labels=labels)
    return steps.train.trace(steps.abstract_state, batch, *steps.abstract_teacher)


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, int]:
    """Return the program, None if the compiler runs out of memory, and the bytes it needs."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _out_of_memory(str(error))
        if needed is None:
            raise
        return None, needed
    return compiled, device_bytes(compiled.memory_analysis())


def find_fit(
    config: ConfigDict, devices: int, fits: Callable[[dict], bool]
) -> dict[str, int | str] | None:
    """Return the change of least cost in time that makes a config fit, or None.

    fits: compiles a change such as {"accumulation": 2}. That takes minutes: of each ladder, the
    first and the last change are therefore tried before those between.
    """
    for ladder in savings(config, devices):
        if fits(ladder[0]):
            return ladder[0]
        if len(ladder) > 1 and fits(ladder[-1]):
            return next(filter(fits, ladder[1:-1]), ladder[-1])
    return None


def savings(config: ConfigDict, devices: int) -> Iterator[list[dict[str, int | str]]]:
    """Yield ladders of config changes; each change saves more memory and costs more time.

    Each ladder shards the state over twice as many devices as the ladder before, which costs
    network traffic. With replicated parameters, accumulation only makes the matrix products
    smaller, while recomputing costs up to a third of the FLOPs; with sharded parameters, every
    micro-batch gathers them again, so recomputing comes first.
    """
    # What divides a step: a loss that compares all of its videos has chunks instead.
    divide = "chunks" if "chunks" in config else "accumulation"
    parts = [config[divide]]
    while config.batch_size * config.repeats % (devices * parts[-1] * 2) == 0:
        parts.append(parts[-1] * 2)
    remats = list(RECOMPUTED)[list(RECOMPUTED).index(config.run.remat) :]
    now = {divide: parts[0], "run.remat": remats[0], "mesh.fsdp": config.mesh.fsdp}
    splits = [config.mesh.fsdp]  # -1: all the devices that are left
    while splits[-1] > 0 and devices % (splits[-1] * 2) == 0:
        splits.append(splits[-1] * 2)
    for fsdp in splits:
        if fsdp == 1:
            steps = [(p, remats[0]) for p in parts] + [(parts[-1], r) for r in remats[1:]]
        else:
            steps = [(parts[0], r) for r in remats] + [(p, remats[-1]) for p in parts[1:]]
        changes = [dict(zip(now, (*step, fsdp), strict=True)) for step in steps]
        changes = [{k: v for k, v in change.items() if v != now[k]} for change in changes]
        if ladder := [change for change in changes if change]:
            yield ladder


def change_config(config: ConfigDict, change: dict[str, int | str]) -> ConfigDict:
    """Return a copy of `config` with new values for dotted keys."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    return config.lock()


def _platform(device: jax.Device) -> str:
    return "cuda" if device.platform == "gpu" else device.platform


def _capacity(device: jax.Device, chip: Chip | None) -> int | None:
    """Return the bytes of a device by its data sheet; of a CPU, its part of main memory.

    Of an accelerator that `chips.py` does not know, the bytes that JAX may use, or None.
    """
    if chip:
        return int(chip.memory)
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return main_memory() // jax.local_device_count()


def _out_of_memory(message: str) -> int | None:
    """Return the bytes in a compiler's out-of-memory error, None for another error."""
    match = re.search(
        r"(?:Used |temporaries \()([\d.]+)([KMGT]?)(?: of [\d.]+[KMGT]? hbm|\) exceeds)", message
    )
    if not match or "RESOURCE_EXHAUSTED" not in message:
        return None
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
