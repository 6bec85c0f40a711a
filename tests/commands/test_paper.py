"""`videomae paper`: tables, rows and commands."""

import json

import pytest

from videomae_jax import cli


def test_the_tables_are_listed(capsys):
    cli.main(["paper"])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("masks ")).split()[1] == "8"


def test_a_table_has_a_line_for_each_row(capsys):
    cli.main(["paper", "loss"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("Loss (Table 1f)")
    assert len(lines) == 6
    assert lines[0] == "l1-ssv2: top-1 69.1; this package has no such loss"
    assert "released scripts" in lines[2] and "H100-hours" in lines[2]


def test_a_row_has_its_commands_in_order(capsys, tmp_path):
    cli.main(["paper", "strategy", "in21k-k400-labels-ssv2", "--json", str(tmp_path / "row.json")])
    _, line, *commands = capsys.readouterr().out.splitlines()
    assert "unverified" in line
    (row,) = json.loads((tmp_path / "row.json").read_text())["strategy"]
    assert row["commands"] == commands
    assert [command.split()[1] for command in commands] == [
        *("data", "convert", "train"),  # ImageNet-21k, then K400
        *("data", "train", "evaluate"),
    ]


def test_unknown_names_are_errors(capsys):
    for words, told in (
        (["lossy"], "table 'lossy' is unknown: use one of ssv2, k400"),
        (["loss", "mse"], "row 'mse' is unknown: use one of mse-ssv2, mse-k400"),
    ):
        with pytest.raises(SystemExit, match="1"):
            cli.main(["paper", *words])
        assert told in capsys.readouterr().err
