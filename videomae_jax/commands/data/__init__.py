"""Prepare videos for training: list, check and pack them, and measure how fast they are read.

examples:
  videomae data list --help
  videomae data check train.csv
"""

import argparse

from videomae_jax.commands import add_commands

COMMANDS = ("list", "check", "pack", "benchmark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    add_commands(parser, COMMANDS, package=__name__)
