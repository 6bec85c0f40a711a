"""Prepare videos for training: list them, check them, pack them, measure how fast they come.

videomae data COMMAND --help tells more of each.
"""

import argparse

from videomae_jax.commands import add_commands

COMMANDS = ("list", "check", "pack", "benchmark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, COMMANDS, package=__name__)
