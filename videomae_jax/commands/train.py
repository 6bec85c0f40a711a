"""Train a model, or resume its training.

A run resumes from the newest checkpoint in --workdir. Ctrl-C and SIGTERM save a checkpoint and
exit with code 42.

Start all processes of a distributed run with the same command. Slurm, TPU pods, Kubernetes and
Open MPI set rank and world size automatically; otherwise pass --coordinator, --processes and
--process-id.

examples:
  videomae train --config=demo --workdir=runs/demo
  videomae train --config=pretrain:b,k400 --workdir=runs/b --config.data.train=train.csv
"""

import argparse
import os
import sys

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_config(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        help="folder for checkpoints and logs, made if missing",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        default=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        help="address of process 0 with a free port (default: $JAX_COORDINATOR_ADDRESS)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        default=os.environ.get("JAX_NUM_PROCESSES"),
        help="number of processes; 1 skips cluster detection (default: $JAX_NUM_PROCESSES)",
    )
    parser.add_argument(
        "--process-id",
        type=int,
        metavar="I",
        default=os.environ.get("JAX_PROCESS_ID"),
        help="number of this process, 0 to N - 1 (default: $JAX_PROCESS_ID)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="only print the memory and the time that the run needs, as `videomae plan` does",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.commands.plan import print_plan
    from videomae_jax.config import load_config_and_given
    from videomae_jax.devices.distributed import connected
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.interop.init_from import with_source_geometry
    from videomae_jax.interop.teacher import with_teacher
    from videomae_jax.tasks import TASKS

    config, given = load_config_and_given(args.config, args.overrides)
    if args.plan:
        config = with_source_geometry(config, given, workdir=args.workdir)
        print_plan(with_teacher(config, workdir=args.workdir), "here")
        return

    def load_weights(path):
        return load_checkpoint(path).params

    with connected(
        coordinator=args.coordinator,
        processes=args.processes,
        process_id=args.process_id,
        heartbeat_seconds=config.heartbeat_seconds,
    ):
        # Not earlier: this imports TensorFlow for seconds, and other processes would wait.
        from videomae_jax.training.loop import train

        config = with_source_geometry(config, given, workdir=args.workdir)
        config = with_teacher(config, workdir=args.workdir)
        task_module = TASKS[config.task]
        finished = train(config, task_module, workdir=args.workdir, load_weights=load_weights)
    if not finished:
        sys.exit(options.EXIT_STOPPED)
