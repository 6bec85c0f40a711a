"""The parts of the site that are made from the code: the reference, and two figures."""

import argparse

import pytest
from runs import ROOT

from docs import generated
from experiments import architecture_figure
from videomae_jax import cli
from videomae_jax.config import flatten, load_recipe, recipe_names


def commands(parser):
    """Return the parsers of all commands by name, those in groups too."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= {command.prog: command} | commands(command)
    return found


COMMANDS = commands(cli.make_parser())


@pytest.fixture(scope="module")
def sections():
    """The text of each command in the reference, by its name."""
    _, *parts = ("\n\n" + generated.commands()).split("\n\n## ")
    return {part.partition("\n")[0]: part for part in parts}


def test_the_reference_has_every_command(sections):
    assert list(sections) == list(COMMANDS)
    assert "videomae train" in sections and "videomae data pack" in sections


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_argument_of(name, sections):
    for action in COMMANDS[name]._actions:
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            for option in action.option_strings:
                assert f"`{option}" in sections[name], option
            assert action.option_strings or f"{action.metavar}" in sections[name]


def test_the_reference_has_every_key_with_its_default_and_a_comment():
    """Of all recipes but the demo, whose keys are those of pre-training."""
    assert set(generated.RECIPES) == set(recipe_names()) - {"demo"}
    tables = {
        part.partition("\n")[0]: dict(
            (cells[0].strip(" `"), cells)
            for row in part.splitlines()
            if row.startswith("| `") and len(cells := row.strip("|").split(" | ")) == 4
        )
        for part in ("\n\n" + generated.config_keys()).split("\n\n## ")[1:]
    }
    shared = tables["Every recipe"]
    for name, (arguments, *_) in generated.RECIPES.items():
        rows = shared | tables[f"`{name}:{arguments}`"]
        leaves = flatten(load_recipe(name, arguments))
        assert leaves.keys() <= rows.keys()
        for key, (_, kind, default, meaning) in rows.items():
            assert kind and len(meaning.strip()) > 5, key
            if isinstance(value := leaves.get(key), (bool, int, str)):
                assert default.strip() == f"`{value!r}`", key
    assert rows["batch_size"][2] == "`128`"


def test_a_comment_is_the_one_beside_or_above_a_key(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(
        "def get_config():\n"
        "    config = load('other')\n"
        "    # Changed.\n"
        "    config.rate = 3\n"
        "    return ConfigDict(dict(\n"
        "        one=1,  # beside\n"
        "        # Above,\n"
        "        # in two lines.\n"
        "        two=dict(\n"
        "            three=(\n"
        "                3,\n"
        "            ),  # at the end\n"
        "        ),\n"
        "        none=0,\n"
        "    ))\n"
    )
    source = generated._Source(file)
    assert source.returned("get_config") == {"one": "beside", "two.three": "at the end", "none": ""}
    assert source.assigned("get_config") == {"rate": "Changed."}


@pytest.mark.parametrize("name", ["layers", "batch"])
def test_the_figures_are_those_of_the_script(name):
    file = {"layers": "architecture.svg", "batch": "batch.svg"}[name]
    assert (ROOT / "docs" / file).read_text() == getattr(architecture_figure, name)()


def test_the_figure_has_every_folder():
    drawn = {name for name, _ in architecture_figure.LAYERS + architecture_figure.ROOMS}
    folders = {path.parent.name for path in (ROOT / "videomae_jax").glob("*/__init__.py")}
    assert folders <= drawn
