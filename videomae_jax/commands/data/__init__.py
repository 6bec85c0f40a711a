"""List, check, pack and draw videos for training, and measure how fast they are read.

examples:
  videomae data draw clips/
  videomae data list clips/ --out train.csv --val val.csv
  videomae data check train.csv
  videomae data pack train.csv packed/train
  videomae data benchmark --config=demo --config.data.train=packed/train
"""

import argparse

from videomae_jax.commands import add_commands

COMMANDS = ("draw", "list", "check", "pack", "benchmark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    add_commands(parser, COMMANDS, package=__name__)
