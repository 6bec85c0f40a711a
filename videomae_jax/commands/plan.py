"""Report the memory and the time that a run needs, on devices that need not exist.

Compiles the training step ahead of time. Prints the memory per device, the collectives and lower
bounds of the time. If the step does not fit, searches for a change of the config that makes it fit.

examples:
  videomae plan --config=demo --config.data.train=train.csv
  videomae plan --config=pretrain:b,k400 --topology=v5e-64 --examples=240000
  videomae plan --config=pretrain:l,k400 --topology=h100-8x2 --json=plan.json
"""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from videomae_jax.commands import options
from videomae_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from videomae_jax.diagnostics.plan import StepPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_config(parser)
    parser.add_argument(
        "--topology",
        default="here",
        metavar="NAME",
        help="here, the devices of this machine (default); a TPU slice such as v5e-64, v5p-128, "
        "v6e-256 or tpu7x-64; several slices, v5p-128x2; GPU hosts, h100-8x2",
    )
    parser.add_argument(
        "--examples", type=int, metavar="N", help="videos in an epoch, if the config names none"
    )
    parser.add_argument(
        "--mfu", type=float, metavar="X", help="assumed fraction of the peak FLOPs (default: 0.4)"
    )
    options.add_json(parser, of="the numbers")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.diagnostics.topology import prepare_environment

    prepare_environment(args.topology)
    from videomae_jax.config import load_config_and_given
    from videomae_jax.interop.init_from import with_source_geometry
    from videomae_jax.interop.teacher import with_teacher

    config, given = load_config_and_given(args.config, args.overrides)
    config = with_teacher(with_source_geometry(config, given))
    print_plan(config, args.topology, examples=args.examples, mfu=args.mfu, json_file=args.json)


def print_plan(
    config: "ConfigDict",
    topology: str,
    *,
    examples: int | None = None,
    mfu: float | None = None,
    json_file: str | None = None,
) -> None:
    """Print the plan of a config and, where it does not fit, the change that makes it fit."""
    import sys

    from videomae_jax.diagnostics import plan
    from videomae_jax.diagnostics.topology import find_devices
    from videomae_jax.tasks import TASKS
    from videomae_jax.training.optim import make_schedule

    if examples is not None and examples < 1:
        raise UserError(f"--examples {examples}: use 1 or more")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g}: use above 0 to 1, such as 0.4")
    mfu = mfu or plan.MFU
    task_module = TASKS[config.task]
    # Without videos or --examples, the length of an epoch is unknown.
    known = bool(examples or config.data.train or config.steps)
    config, videos = plan.prepare_config(config, task_module, examples=examples)
    devices, hosts = find_devices(topology)

    def compile_step(config: "ConfigDict") -> "StepPlan":
        return plan.plan_step(
            config, task_module, devices=devices, hosts=hosts, examples=len(videos)
        )

    print("compiling the step: a minute or more for the large sizes", file=sys.stderr, flush=True)
    step = compile_step(config)
    length = make_schedule(config, examples=len(videos)).steps if known else None
    print(plan_text(f"{config.name} on {topology}", config, step, steps=length, mfu=mfu))
    fitting = None if step.fits else _find_fit(config, compile_step, devices=len(devices), mfu=mfu)
    result = {
        "config": config.name,
        "topology": topology,
        **_as_json(step, mfu=mfu),
        "steps": length,
        "assumed_mfu": mfu,
        "would_fit": fitting,
    }
    options.write_json(json_file, result)


def _find_fit(
    config: "ConfigDict",
    compile_step: "Callable[[ConfigDict], StepPlan]",
    *,
    devices: int,
    mfu: float,
) -> dict[str, Any] | None:
    """Print each change that is tried; return the one that fits, as JSON types, or None."""
    from videomae_jax.diagnostics import plan

    print("what would fit:", flush=True)
    tried = {}

    def flags(change: dict[str, int | str]) -> str:
        return " ".join(f"--config.{key}={value}" for key, value in change.items())

    def fits(change: dict[str, int | str]) -> bool:
        # Print the change before it is compiled, which takes time.
        print(f"  {flags(change)}: ", end="", flush=True)
        try:
            other = compile_step(plan.change_config(config, change))
        except UserError as error:
            print(error, flush=True)
            return False
        print(memory_line(other), flush=True)
        tried[flags(change)] = {"change": change, **_as_json(other, mfu=mfu)}
        return other.fits

    change = plan.find_fit(config, devices, fits)
    if change is None:
        print("  nothing tried: use a smaller batch, more devices or larger ones")
        return None
    print(f"use {flags(change)}")
    return tried[flags(change)]


def memory_line(step: "StepPlan") -> str:
    """Return the memory that a device needs and has, in words."""
    from videomae_jax.devices.host_memory import size_text

    needed, verdict = size_text(step.needed), "fits" if step.fits else "does not fit"
    if step.capacity:
        needed += f" of {size_text(step.capacity)}"
    elif step.fits:
        verdict = "compare it with the device's memory, unknown"
    line = f"{needed} per device: {verdict}"
    if step.arguments is None or step.temporaries is None:
        return line
    return (
        f"{line} (state and batch {size_text(step.arguments)}, "
        f"temporaries {size_text(step.temporaries)})"
    )


def plan_text(
    title: str, config: "ConfigDict", step: "StepPlan", *, steps: int | None, mfu: float
) -> str:
    """Return the lines of a plan. steps: the length of the run, None if unknown."""
    from videomae_jax.devices.host_memory import size_text
    from videomae_jax.training import banner

    devices = math.prod(step.mesh.values())
    shape = ", ".join(f"{name}={value}" for name, value in step.mesh.items())
    rows = {
        "devices": f"{devices} x {step.device} ({shape})",
        "batch": f"{step.clips} clips a step, {config.accumulation} accumulated; "
        f"remat {config.run.remat}",
        "memory": memory_line(step),
        "FLOPs": f"{step.flops * devices / 1e12:,.4g} T a step, {step.flops / 1e12:,.4g} T per "
        "device (closed form)",
    }
    for row in step.collectives:
        name = f"{row.kind} between slices or hosts" if row.remote else row.kind
        rows[name] = f"{size_text(row.bytes)} sent per device and step, {row.calls} calls"
    if step.kernels:
        rows["kernels"] = ", ".join(f"{name} in {n} places" for name, n in step.kernels.items())
    return banner.text(title, rows | _time_rows(step, steps=steps, mfu=mfu))


def _time_rows(step: "StepPlan", *, steps: int | None, mfu: float) -> dict[str, str]:
    from videomae_jax.progress import clock

    if step.compute_floor is None:
        return {"time": f"no data sheet of {step.device} here: run a step and see"}
    seconds = step.step_seconds(mfu)
    if seconds is None:
        return {}
    floors = {
        "compute": step.compute_floor,
        "memory": step.memory_floor,
        "network": step.network_floor,
    }
    if steps is None:
        length = "pass --examples or --config.data.train to compute its length"
    else:
        length = f"{steps:,} steps, {clock(steps * seconds)} (h:mm:ss)"
    return {
        "floors": ", ".join(f"{name} {_milliseconds(floor)}" for name, floor in floors.items()),
        "step": f"{_milliseconds(seconds)}, {step.clips / seconds:,.4g} clips/s: an estimate that "
        f"assumes {mfu:.0%} of the peak, nothing overlapped, data always ready",
        "run": length,
    }


def _as_json(step: "StepPlan", *, mfu: float) -> dict[str, Any]:
    rows = [row._asdict() for row in step.collectives]
    return {**step._asdict(), "collectives": rows, "step_seconds": step.step_seconds(mfu)}


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1e3 * seconds:.3g} ms"
