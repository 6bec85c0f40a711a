"""Train a model, or go on training it.

The config names a recipe; --config.KEY=VALUE changes any part of it. A run continues from
the newest checkpoint in --workdir. Ctrl-C and SIGTERM save and exit with 42.
"""

import argparse
import sys

EXIT_STOPPED = 42  # saved and ready to go on: what XPK and Slurm scripts restart on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGS]", help="e.g. configs/pretrain.py:b,k400"
    )
    parser.add_argument("--workdir", required=True, help="checkpoints and logs; made if missing")
    parser.add_argument(
        "--plan", action="store_true", help="only tell what it needs, as `videomae plan` does"
    )
    parser.set_defaults(overrides=[])
    parser.epilog = "--config.KEY=VALUE overrides a key of the config, e.g. --config.batch_size=64"


def main(args: argparse.Namespace) -> None:
    from videomae_jax.commands.plan import tell
    from videomae_jax.config import load_config
    from videomae_jax.interop.files import load_checkpoint
    from videomae_jax.tasks import classify, pretrain, probe
    from videomae_jax.training.loop import train

    tasks = {"pretrain": pretrain, "classify": classify, "probe": probe}
    config = load_config(args.config, args.overrides)
    if args.plan:
        tell(config, "here")
        return

    def load_weights(path):
        return load_checkpoint(path).params

    finished = train(config, tasks[config.task], workdir=args.workdir, load_weights=load_weights)
    if not finished:
        sys.exit(EXIT_STOPPED)
