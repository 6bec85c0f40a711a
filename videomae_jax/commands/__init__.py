"""The `videomae` command line: one module per sub-command, found by its name here."""

import argparse
import importlib
from collections.abc import Sequence


def add_commands(parser: argparse.ArgumentParser, names: Sequence[str], *, package: str) -> None:
    """Add the modules `names` of a package as sub-commands; the `main` of one becomes `args.run`.

    The first line of a module's docstring is its summary, the whole of it the help. A group of
    commands has no `main`, but sub-commands of its own.
    """
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        module = importlib.import_module(f"{package}.{name}")
        command = commands.add_parser(
            name,
            help=module.__doc__.partition("\n")[0],
            description=module.__doc__.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(prog=command.prog)
        if hasattr(module, "main"):
            command.set_defaults(run=module.main)
        module.add_arguments(command)


def add_threads(parser: argparse.ArgumentParser, *, of: str) -> None:
    """Add --threads, None where it is not given: how many `of`, such as "decoders", there are."""

    def positive(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
        return int(text)

    words = f"{of} (default: one a core)"
    parser.add_argument("--threads", type=positive, metavar="N", help=words)
