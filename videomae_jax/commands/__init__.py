"""The sub-commands of `videomae`, one module for each."""

import argparse
import importlib
from collections.abc import Sequence


def add_commands(parser: argparse.ArgumentParser, names: Sequence[str], *, package: str) -> None:
    """Add the modules `names` of a package as sub-commands; `args.run` is the `main` of one.

    The docstring of a module is its help: a summary line, a description and, at the end, after
    the arguments, a paragraph of examples. A module without `main` is a group of sub-commands.
    """
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        module = importlib.import_module(f"{package}.{name}")
        text = (module.__doc__ or "").strip()
        description, _, examples = text.partition("\n\nexamples:\n")
        command = commands.add_parser(
            name,
            help=description.partition("\n")[0],
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(prog=command.prog)
        if hasattr(module, "main"):
            command.set_defaults(run=module.main)
        module.add_arguments(command)
