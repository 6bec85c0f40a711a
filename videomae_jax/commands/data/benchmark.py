"""Measure how fast the input pipeline of a config is, and whether its step has to wait.

videomae data benchmark --config=FILE[:ARGS] --config.data.train=VIDEOS [--json FILE]

Times reading, decoding, augmentation on the host (crops and resizing) and the transfer to the
devices, each alone and all together; then training steps on these devices. The last line says
whether the steps are fed or starved, by how much, and what to change.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGS]", help="e.g. pretrain:b,k400"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5,
        metavar="N",
        help="about how long to time each stage (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result here")
    parser.set_defaults(overrides=[])
    parser.epilog = "--config.KEY=VALUE overrides a key of the config, e.g. --config.data.threads=4"


def main(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    import jax

    from videomae_jax.config import load_config_and_given
    from videomae_jax.diagnostics.feeding import measure, verdict
    from videomae_jax.errors import UserError
    from videomae_jax.interop.init_from import with_source_geometry
    from videomae_jax.tasks import TASKS

    if args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: use above 0, such as 5")
    config = with_source_geometry(*load_config_and_given(args.config, args.overrides))
    found = measure(config, TASKS[config.task], seconds=args.seconds)
    sentence = verdict(config, found)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{config.name}; {config.data.train}")
    print(f"{found.threads} threads on {found.cores} cores; {devices}")
    print(f"  {'':10}{'clips/s':>10}{'a core':>10}{'MB/s':>10}")
    for name, rate in found.rates.items():
        core = f"{rate.core:10.4g}" if rate.core else f"{'':10}"
        print(f"  {name:10}{rate.clips:10.4g}{core}{rate.bytes / 1e6:10.4g}")
    print(f"  {'needed':10}{found.needed:10.4g}  in steps of {found.step_clips} clips")
    if found.memory_share is not None:
        print(
            f"data.memory_gb={config.data.memory_gb:g} holds about {found.memory_share:.0%} of the "
            "videos; together is the rate of those, once they are decoded"
        )
    if jax.default_backend() == "cpu":
        total = 1 / (1 / found.needed + 1 / found.rates["together"].clips)
        print(f"steps take the same cores as the input: {total:.4g} clips/s in total")
    print(sentence)
    if args.json:
        result = {
            "config": config.name,
            "train": config.data.train,
            "devices": devices,
            **found._asdict(),
            "rates": {name: rate._asdict() for name, rate in found.rates.items()},
            "fed": found.rates["together"].clips >= found.needed,
            "verdict": sentence,
        }
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
