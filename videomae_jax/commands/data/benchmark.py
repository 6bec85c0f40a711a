"""Measure the speed of the input pipeline, and whether training steps wait for it.

Times reading, decoding, augmentation on the host (crops and resizing) and the transfer to the
devices, each alone and all together, and then training steps on these devices. The last line says
whether the input is fast enough, by which factor, and what to change.

examples:
  videomae data benchmark --config=demo --config.data.train=train.csv
  videomae data benchmark --config=pretrain:b,k400 --config.data.train=packed/ --seconds=20
"""

import argparse

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_config(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=5,
        metavar="N",
        help="approximate time to measure each stage for (default: %(default)s)",
    )
    options.add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import jax

    from videomae_jax.config import load_config_and_given
    from videomae_jax.diagnostics.feeding import measure, verdict
    from videomae_jax.errors import UserError
    from videomae_jax.interop.init_from import with_source_geometry
    from videomae_jax.interop.teacher import with_teacher
    from videomae_jax.tasks import TASKS

    if args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: use above 0, such as 5")
    config, given = load_config_and_given(args.config, args.overrides)
    config = with_teacher(with_source_geometry(config, given))
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
    result = {
        "config": config.name,
        "train": config.data.train,
        "devices": devices,
        **found._asdict(),
        "rates": {name: rate._asdict() for name, rate in found.rates.items()},
        "fed": found.rates["together"].clips >= found.needed,
        "verdict": sentence,
    }
    options.write_json(args.json, result)
