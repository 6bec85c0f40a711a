"""The help of every command: complete, in one style, and no wider than 100 columns."""

import argparse
import importlib
import re

import pytest

from videomae_jax import cli
from videomae_jax.commands import data

COMMANDS = [*cli.COMMANDS, *(f"data {name}" for name in data.COMMANDS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_ends_with_examples_of_the_command(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    _, examples = text.split("\nexamples:\n")
    assert all(line.startswith(f"  videomae {command} ") for line in examples.splitlines()[1:])
    assert examples.startswith(f"  videomae {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_is_explained_in_one_style(command):
    module = importlib.import_module(f"videomae_jax.commands.{command.replace(' ', '.')}")
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert re.match(r"[a-z.$]", action.help or ""), action.dest
            assert not action.help.endswith("."), action.dest
