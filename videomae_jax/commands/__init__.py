"""The `videomae` command line: one module per sub-command, found by its name here."""

import argparse
import importlib
from collections.abc import Sequence


def add_commands(parser: argparse.ArgumentParser, names: Sequence[str], *, package: str) -> None:
    """Add the modules `names` of a package as sub-commands; the `main` of one becomes `args.run`.

    The first line of a module's docstring is the summary, the whole docstring the help. A group
    of commands has no `main`, but sub-commands of its own.
    """
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        module = importlib.import_module(f"{package}.{name}")
        text = (module.__doc__ or "").strip()
        command = commands.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(prog=command.prog)
        if hasattr(module, "main"):
            command.set_defaults(run=module.main)
        module.add_arguments(command)
