"""Tell what a run needs and how long it takes, on devices that need not be there.

videomae plan --config=pretrain:b,k400 --topology v5e-64 [--examples 240000]

Compiles the real training step ahead of time: bytes per device, collectives, floors, whether
it fits and, if not, what would. v5p-128 is one slice, v5p-128x2 two, h100-8x2 two hosts.
"""

import argparse

from videomae_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGS]", help="e.g. pretrain:b,k400"
    )
    parser.add_argument(
        "--topology",
        default="here",
        metavar="NAME",
        help="e.g. v5e-64, v5p-128, v6e-256, tpu7x-64, h100-8x2; here: the devices at hand",
    )
    parser.add_argument(
        "--examples", type=int, metavar="N", help="videos of an epoch, where there are none yet"
    )
    parser.add_argument(
        "--mfu", type=float, metavar="X", help="share of the peak to assume (default 0.4)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    parser.set_defaults(overrides=[])
    parser.epilog = "--config.KEY=VALUE overrides a key of the config, e.g. --config.batch_size=64"


def main(args: argparse.Namespace) -> None:
    from videomae_jax.diagnostics.topology import prepare_environment

    prepare_environment(args.topology)
    from videomae_jax.config import load_config

    config = load_config(args.config, args.overrides)
    tell(config, args.topology, examples=args.examples, mfu=args.mfu, json_file=args.json)


def tell(
    config,
    topology: str,
    *,
    examples: int | None = None,
    mfu: float | None = None,
    json_file: str | None = None,
) -> None:
    """Print the plan of a config, and what would fit where it does not."""
    import json
    import sys
    from pathlib import Path

    from videomae_jax.diagnostics import plan
    from videomae_jax.diagnostics.topology import find_devices
    from videomae_jax.tasks import TASKS

    if examples is not None and examples < 1:
        raise UserError(f"--examples {examples}: use 1 or more")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g}: use above 0 to 1, such as 0.4")
    task_module = TASKS[config.task]
    # An epoch of unknown length leaves the length of the run unknown, not the step.
    known = bool(examples or config.data.train)
    config, videos = plan.prepare_config(config, task_module, examples=examples)
    devices, places = find_devices(topology)
    there = dict(
        devices=devices, places=dict(zip(devices, places, strict=True)), examples=len(videos)
    )
    mfu = mfu or plan.MFU

    print("compiling the step: a minute or more for the large sizes", file=sys.stderr, flush=True)
    step = plan.plan_step(config, task_module, **there)
    length = plan.run_steps(config, len(videos)) if known or config.steps else None
    print(plan.text(f"{config.name} on {topology}", config, step, steps=length, mfu=mfu))
    fitting = None
    if not step.fits:
        print("what would fit:", flush=True)
        tried = {}

        def words(change):
            return " ".join(f"--config.{key}={value}" for key, value in change.items())

        def fits(change):
            # First what is being compiled: it takes its time.
            print(f"  {words(change)}: ", end="", flush=True)
            try:
                other = plan.plan_step(plan.change_config(config, change), task_module, **there)
            except UserError as error:
                print(error, flush=True)
                return False
            print(plan.memory_line(other), flush=True)
            tried[words(change)] = {"change": change, **plan.as_json(other, mfu=mfu)}
            return other.fits

        change = plan.find_fit(config, len(devices), fits)
        if change is None:
            print("  nothing tried: use a smaller batch, more devices or larger ones")
        else:
            fitting = tried[words(change)]
            print(f"use {words(change)}")
    if json_file:
        result = {
            "config": config.name,
            "topology": topology,
            **plan.as_json(step, mfu=mfu),
            "steps": length,
            "assumed_mfu": mfu,
            "would_fit": fitting,
        }
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(json.dumps(result, indent=1) + "\n")
