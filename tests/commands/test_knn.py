"""`videomae knn`: accuracies, unreadable videos and mistakes."""

import json

import pytest
from runs import KINDS, fails, rows

from videomae_jax import cli


@pytest.fixture
def lists(labelled):
    return [text.partition("=")[2] for text in labelled]


@pytest.mark.slow
def test_the_command_reports_every_k_and_what_could_not_be_read(
    pretrained,
    lists,
    tmp_path,
    capsys,
):
    train, _ = lists
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")
    (tmp_path / "some.csv").write_text(rows("train", KINDS, range(4)) + f"\n{bad} walk")
    file = tmp_path / "result.json"
    command = ["knn", "--checkpoint", pretrained, "--train", train, "--eval", tmp_path / "some.csv"]
    cli.main([*map(str, command), "--k", "1", "12", "--json", str(file)])
    said = capsys.readouterr().out
    result = json.loads(file.read_text())
    # The training clips again, so the nearest of each is itself.
    assert "k 1    top-1 100.0 %" in said
    assert result["top1"]["1"] == dict(
        value=1, low=pytest.approx(0.7575, abs=1e-4), high=1, count=12
    )
    assert set(result["top1"]) == {"1", "12"} and result["top1"]["12"]["value"] < 1
    assert "12 of 13 videos against 12 of 12" in said and "1 of 13 videos unreadable" in said
    assert list(result["unreadable"]) == [str(bad)]
    # Other weights, other neighbours.
    cli.main([*map(str, command), "--k", "12", "--untrained", "--json", str(file)])
    assert "untrained weights" in capsys.readouterr().out
    assert result["top1"]["12"]["count"] == json.loads(file.read_text())["top1"]["12"]["count"]


def test_mistakes_are_one_line(pretrained, detector, lists, tmp_path, capsys):
    train, held = lists
    command = ["knn", "--checkpoint", pretrained, "--train", train, "--eval"]
    assert "use 1 to 12" in fails(capsys, *command, held, "--k", 13)
    assert "batch 3 is not divisible by 8 devices: use 8" in fails(
        capsys, *command, held, "--k", 1, "--batch-size", 3
    )
    boxes = ["knn", "--checkpoint", detector[0], "--train", train, "--eval", held]
    assert "kNN compares clips of whole videos" in fails(capsys, *boxes)
    other = tmp_path / "other.csv"
    other.write_text(rows("val", KINDS, [0], label=lambda _: ""))
    assert "has no labels" in fails(capsys, *command, other, "--k", 1)
    other.write_text(rows("val", ("run",), [0]))
    assert "first 'run'" in fails(capsys, *command, other, "--k", 1)
    (tmp_path / "bad.mp4").write_text("")
    other.write_text("bad.mp4 walk")
    assert "1 of 1 videos unreadable" in fails(capsys, *command, other, "--k", 1)
