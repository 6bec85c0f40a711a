"""Train a model, or resume its training.

The config names a recipe; --config.KEY=VALUE changes any part of it. A run resumes from the
newest checkpoint in --workdir. Ctrl-C and SIGTERM save and exit with code 42.

Processes that train together are started with the same command. Slurm, TPU pods, Kubernetes and
Open MPI set rank and world size automatically; otherwise pass --coordinator, --processes and
--process-id.

examples:
  videomae train --config=demo --workdir=runs/demo
  videomae train --config=pretrain:b,k400 --workdir=runs/b --config.data.train=train.csv
"""

import argparse
import os
import sys

from videomae_jax.commands.options import EXIT_STOPPED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="CONFIG",
        help="NAME[:ARGS] or FILE.py[:ARGS], e.g. pretrain:b,k400",
    )
    parser.add_argument("--workdir", required=True, help="checkpoints and logs; made if missing")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        default=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        help="of process 0, any free port; or $JAX_COORDINATOR_ADDRESS",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        default=os.environ.get("JAX_NUM_PROCESSES"),
        help="number of processes, 1 skips cluster detection; or $JAX_NUM_PROCESSES",
    )
    parser.add_argument(
        "--process-id",
        type=int,
        metavar="I",
        default=os.environ.get("JAX_PROCESS_ID"),
        help="0 to N - 1; or $JAX_PROCESS_ID",
    )
    parser.add_argument(
        "--plan", action="store_true", help="only print what it needs, as `videomae plan` does"
    )
    parser.set_defaults(overrides=[])
    parser.epilog = "--config.KEY=VALUE overrides a key of the config, e.g. --config.batch_size=64"


def main(args: argparse.Namespace) -> None:
    from videomae_jax.commands.plan import print_plan
    from videomae_jax.config import load_config_and_given
    from videomae_jax.devices.distributed import connected
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.interop.init_from import with_source_geometry
    from videomae_jax.tasks import TASKS

    config, given = load_config_and_given(args.config, args.overrides)
    if args.plan:
        print_plan(with_source_geometry(config, given, workdir=args.workdir), "here")
        return

    def load_weights(path):
        return load_checkpoint(path).params

    with connected(
        coordinator=args.coordinator,
        processes=args.processes,
        process_id=args.process_id,
        heartbeat_seconds=config.heartbeat_seconds,
    ):
        # TensorFlow, which it brings, takes seconds: the peers need not wait for it.
        from videomae_jax.training.loop import train

        config = with_source_geometry(config, given, workdir=args.workdir)
        task_module = TASKS[config.task]
        finished = train(config, task_module, workdir=args.workdir, load_weights=load_weights)
    if not finished:
        sys.exit(EXIT_STOPPED)
