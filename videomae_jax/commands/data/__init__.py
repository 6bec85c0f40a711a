"""Prepare videos for training: pack them.

videomae data COMMAND --help tells more of each.
"""

import argparse

from videomae_jax.commands import add_commands

COMMANDS = ("pack",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, COMMANDS, package=__name__)
