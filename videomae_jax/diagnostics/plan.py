"""What a step needs and how long it takes, told by compiling it for devices that may not be there.

Bytes and collectives are the compiler's; FLOPs are the closed form's. The times are floors from
data sheets (`chips.py`), and an estimate that assumes a share of the peak.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from videomae_jax.data.synthetic import synthetic_videos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.chips import Chip, find_chip
from videomae_jax.devices.host_memory import device_bytes, size_text
from videomae_jax.devices.sharding import check_batch, make_mesh
from videomae_jax.diagnostics.collectives import Collective, read_collectives
from videomae_jax.progress import clock
from videomae_jax.tasks.build import open_videos
from videomae_jax.tasks.task import TaskModule
from videomae_jax.training import banner
from videomae_jax.training.optim import make_optimizer, make_schedule, warmup_cosine
from videomae_jax.training.step import abstract_batch, jit_steps

# Assumed of all devices; one H200 reached 0.25 with ViT-S, 0.35 B, 0.41 L, 0.42 H
# (docs/performance.md).
MFU = 0.4
# Of a GPU's memory, what launch/env.sh lets JAX take. A TPU's compiler itself says what fits.
GPU_SHARE = 0.92
# FLOPs of a step under each `run.remat`, in those of its closed form: "full" computes every block
# again, "dots" of its products only those of attention, which are few.
RECOMPUTED = {"none": 1, "dots": 1, "full": 4 / 3}


class StepPlan(NamedTuple):
    """One optimizer step on a mesh: bytes and FLOPs are of one device, times in seconds.

    needed: bytes in all. capacity: bytes there are, None where unknown. kernels: which of a
    library or our own the program calls, and in how many places. The floors are None for devices
    that `chips.py` does not know.
    """

    clips: int  # of a step, over all devices
    mesh: dict[str, int]
    device: str
    flops: float
    arguments: int | None  # state and batch; None where the compiler ran out of memory
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
        """The longer of computing at a share of the peak and moving memory, then the network."""
        if self.compute_floor is None or self.memory_floor is None:
            return None
        return max(self.compute_floor / mfu, self.memory_floor) + self.network_floor


def prepare_config(
    config: ConfigDict, task_module: TaskModule, *, examples: int | None
) -> tuple[ConfigDict, Videos]:
    """Complete a config by its videos, or by `examples` that are not there."""
    if config.data.train and not examples:
        config, videos, _ = task_module.prepare(config, *open_videos(config))
    else:
        count = max(examples or 0, config.batch_size)
        config, videos, _ = task_module.prepare(config, synthetic_videos(count), None)
    return config, videos


def plan_step(
    config: ConfigDict,
    task_module: TaskModule,
    *,
    devices: list[jax.Device],
    places: dict[jax.Device, int],
    examples: int,
) -> StepPlan:
    """Compile the step of a prepared config for `devices`, which need not be there.

    places: the slice or host of each. Raises UserError for a mesh or a batch that the devices
    cannot have.
    """
    mesh = make_mesh(config.mesh, devices)
    check_batch(config, mesh)
    device = devices[0]
    chip = find_chip(device.device_kind)
    capacity = _capacity(device, chip)
    clips = config.batch_size * config.repeats
    # The model asks the mesh in use what it is to run on.
    with jax.set_mesh(mesh):
        task = task_module.build_task(config)
        task.check_clips(clips // (mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation))
        steps = jit_steps(
            task,
            make_optimizer(config, task),
            warmup_cosine(make_schedule(config, examples=examples)),
            mesh,
            seed=config.seed,
            accumulation=config.accumulation,
            ema_decay=config.ema_decay,
        )
        batch = abstract_batch(task.samplers()[0], clips, mesh, labelled=True)
        traced = steps.train.trace(steps.abstract_state, batch)
        lowered = traced.lower(lowering_platforms=(_platform(device),))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _out_of_memory(str(error))
            if needed is None:
                raise
            compiled = None
    flops = task.train_flops * clips / mesh.size
    common = dict(clips=clips, mesh=dict(mesh.shape), device=device.device_kind, flops=flops)
    compute = RECOMPUTED[config.run.remat] * flops / chip.flops if chip else None
    if compiled is None:
        return StepPlan(
            **common,
            arguments=None,
            temporaries=None,
            needed=needed,
            capacity=capacity,
            fits=False,
            collectives=[],
            kernels={},
            compute_floor=compute,
            memory_floor=None,
            network_floor=None,
        )
    stats = compiled.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    needed = device_bytes(stats)
    program = compiled.as_text()
    collectives = read_collectives(program, places=[places[device] for device in mesh.devices.flat])
    # What is read or written at least once: arguments, results, and, both, what is kept between.
    moved = arguments + stats.output_size_in_bytes + 2 * temporaries
    network = [c.bytes / (chip.network if c.remote else chip.link) for c in collectives if chip]
    share = GPU_SHARE if device.platform == "gpu" else 1
    return StepPlan(
        **common,
        arguments=arguments,
        temporaries=temporaries,
        needed=needed,
        capacity=capacity,
        fits=capacity is None or needed <= share * capacity,
        collectives=collectives,
        kernels=dict(Counter(re.findall(r'custom_call_target="([^"]+)"', program)).most_common()),
        compute_floor=compute,
        memory_floor=moved / chip.bandwidth if chip else None,
        network_floor=sum(network) if chip else None,
    )


def find_fit(
    config: ConfigDict, devices: int, fits: Callable[[dict], bool]
) -> dict[str, int | str] | None:
    """Return the change that costs least time and makes a config fit, None if there is none.

    fits: compiles a change such as {"accumulation": 2}, which takes minutes: the change of a
    ladder that saves most is therefore tried before those between.
    """
    for ladder in savings(config, devices):
        if fits(ladder[0]):
            return ladder[0]
        if len(ladder) > 1 and fits(ladder[-1]):
            return next(filter(fits, ladder[1:-1]), ladder[-1])
    return None


def savings(config: ConfigDict, devices: int) -> Iterator[list[dict[str, int | str]]]:
    """Yield ladders of config changes, each of which saves more memory and costs more time.

    A ladder splits the state over twice the devices of the one before, which costs the network.
    Where parameters are whole, more parts of a batch cost nothing but smaller products, and
    recomputing up to a third of the FLOPs; where they are split, each part gathers them anew.
    """
    parts = [config.accumulation]
    while config.batch_size * config.repeats % (devices * parts[-1] * 2) == 0:
        parts.append(parts[-1] * 2)
    remats = list(RECOMPUTED)[list(RECOMPUTED).index(config.run.remat) :]
    now = {"accumulation": parts[0], "run.remat": remats[0], "mesh.fsdp": config.mesh.fsdp}
    splits = [config.mesh.fsdp]  # -1 is as many as there can be
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
    """Return a copy of `config` with other values under dotted names."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    return config.lock()


def _platform(device: jax.Device) -> str:
    return "cuda" if device.platform == "gpu" else device.platform


def _capacity(device: jax.Device, chip: Chip | None) -> int | None:
    """Bytes a device has: by its data sheet, or its part of this machine's memory."""
    if chip:
        return int(chip.memory)
    if device.platform != "cpu":
        return None
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole // jax.local_device_count()


def _out_of_memory(message: str) -> int | None:
    """Bytes that a compiler would have needed at least, or None for another error of its."""
    match = re.search(
        r"(?:Used |temporaries \()([\d.]+)([KMGT]?)(?: of [\d.]+[KMGT]? hbm|\) exceeds)", message
    )
    if not match or "RESOURCE_EXHAUSTED" not in message:
        return None
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def run_steps(config: ConfigDict, examples: int) -> int:
    """Return how many steps a run over so many videos has."""
    return make_schedule(config, examples=examples).steps


def memory_line(step: StepPlan) -> str:
    """What a device needs of what it has."""
    size = size_text
    of = f" of {size(step.capacity)}" if step.capacity else ""
    verdict = "fits" if step.fits else "does not fit"
    if step.arguments is None:
        return f"{size(step.needed)}{of} per device: {verdict}"
    return (
        f"{size(step.needed)}{of} per device: {verdict} (state and batch "
        f"{size(step.arguments)}, temporaries {size(step.temporaries)})"
    )


def text(title: str, config: ConfigDict, step: StepPlan, *, steps: int | None, mfu: float) -> str:
    """Write a plan for people. steps: of the run, None where its length is not known."""
    size, count = size_text, math.prod(step.mesh.values())
    shape = ", ".join(f"{name}={value}" for name, value in step.mesh.items())
    run = config.run
    rows = {
        "devices": f"{count} x {step.device} ({shape})",
        "batch": f"{step.clips} clips a step, {config.accumulation} accumulated; remat {run.remat}",
        "memory": memory_line(step),
        "FLOPs": f"{step.flops * count / 1e12:,.4g} T a step, {step.flops / 1e12:,.4g} T per "
        "device (closed form)",
    }
    for row in step.collectives:
        where = " between slices or hosts" * row.remote
        rows[row.kind + where] = f"{size(row.bytes)} sent per device and step, {row.calls} calls"
    if step.kernels:
        rows["kernels"] = ", ".join(f"{name} in {n} places" for name, n in step.kernels.items())
    if step.compute_floor is None:
        rows["time"] = f"no data sheet of {step.device} here: run a step and see"
    elif (seconds := step.step_seconds(mfu)) is not None:
        rows["floors"] = (
            f"compute {_milliseconds(step.compute_floor)}, memory "
            f"{_milliseconds(step.memory_floor)}, network {_milliseconds(step.network_floor)}"
        )
        rows["step"] = (
            f"{_milliseconds(seconds)}, {step.clips / seconds:,.4g} clips/s: an estimate that "
            f"assumes {mfu:.0%} of the peak, nothing overlapped, data always ready"
        )
        rows["run"] = (
            "give --examples or --config.data.train to tell its length"
            if steps is None
            else f"{steps:,} steps, {clock(steps * seconds)} (h:mm:ss)"
        )
    return banner.text(title, rows)


def as_json(step: StepPlan, *, mfu: float) -> dict:
    """Return a plan as JSON's types."""
    rows = [row._asdict() for row in step.collectives]
    return {**step._asdict(), "collectives": rows, "step_seconds": step.step_seconds(mfu)}


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
