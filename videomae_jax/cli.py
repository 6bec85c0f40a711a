"""The `videomae` command. Sub-commands import JAX and other slow libraries when they run."""

import argparse
import io
import os
import sys
from typing import NoReturn

from videomae_jax import __version__
from videomae_jax.commands import add_commands
from videomae_jax.errors import StorageUnavailable, UserError

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "predict",
    "extract",
    "knn",
    "visualize",
    "convert",
    "models",
    "data",
    "plan",
    "launch",
    "paper",
    "benchmark",
    "doctor",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise the message as a UserError."""
        # argparse exits with 2, but a wrong flag is a user's mistake like any other.
        raise UserError(f"{message}: see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the reference of the docs is made from it."""
    parser = _Parser(
        prog="videomae",
        description="VideoMAE in JAX: masked video pre-training.",
        epilog="`videomae COMMAND --help` explains a command.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"videomae_jax {__version__}",
        help="print the version and exit",
    )
    add_commands(parser, COMMANDS, package="videomae_jax.commands")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a sub-command. After a UserError, print only its message and exit with its code."""
    # Before TensorFlow is imported, which would print messages about devices and kernels that
    # reading files does not use.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # The name of a file may have bytes that no terminal can show; stderr escapes them by default.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args, rest = make_parser().parse_known_args(argv)
        if hasattr(args, "overrides"):
            args.overrides = rest  # --config.KEY=VALUE
        elif rest:
            raise UserError(f"{rest[0]!r} is not understood: see {args.prog} --help")
        args.run(args)
    except UserError as error:
        print(f"videomae: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells do, without a traceback


def run() -> None:
    """Run `main` as a script; after a failure, exit without waiting for threads.

    The threads of a failed save wait ten minutes for each other.
    """
    try:
        main()
    except SystemExit as error:
        if error.code not in (1, StorageUnavailable.exit_code):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code)


if __name__ == "__main__":
    run()
