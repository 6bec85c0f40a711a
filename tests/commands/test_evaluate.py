"""`videomae evaluate`: the accuracies, resuming, and mistakes."""

import csv
import json
import signal

import numpy as np
import pytest
from golden import DATA, read_torch
from runs import CLIPS, KINDS, fails, rows, stop_midway
from videos import write_video

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.samplers import ViewSampler
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.inference import evaluate
from videomae_jax.interop.checkpoint_files import load_checkpoint
from videomae_jax.interop.convert import find_tensors
from videomae_jax.interop.torch_file import write_torch


def test_the_command_prints_accuracies_intervals_and_the_protocol(
    classifier, unreadable_list, tmp_path, capsys
):
    folder, *_ = classifier
    out, file = tmp_path / "out", tmp_path / "result.json"
    command = ["evaluate", "--checkpoint", folder, "--manifest", unreadable_list, "--out", out]
    cli.main([*map(str, command), "--json", str(file), "--views", "2x1"])
    said = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert "2x1 views, 4x4 frames, 16 px, softmax mean, 8 of 10 videos" in said
    assert "2 of 10 videos unreadable" in said and "unreadable.csv" in said
    assert "gone.mp4" in (out / "unreadable.csv").read_text()
    with open(out / "confusion.csv") as lines:
        header, *table = csv.reader(lines)
    counts = np.array([row[1:] for row in table], int)
    assert header == ["class", *KINDS] and counts.sum(axis=1).tolist() == [3, 2, 3]
    right = np.trace(counts)
    assert result["top1"]["value"] == right / 8 and result["top1"]["count"] == 8
    assert result["top1"]["low"] < right / 8 < result["top1"]["high"] or right in (0, 8)
    assert [row["count"] for row in result["classes"]] == [3, 2, 3]
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert len(result["unreadable"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_evaluation_resumes_to_the_same_numbers(
    classifier, tmp_path, number, capsys, monkeypatch
):
    folder, *_ = classifier
    (tmp_path / "list.csv").write_text(rows("val", KINDS, range(8)) + "\nbad.mp4 roll")
    (tmp_path / "bad.mp4").write_text("")

    def command(name):
        options = ["--manifest", tmp_path / "list.csv", "--views=2x1", "--batch-size=8"]
        results = ["--out", tmp_path / name, "--json", tmp_path / f"{name}.json"]
        return [*map(str, ["evaluate", "--checkpoint", folder, *options, *results])]

    scores_folder = tmp_path / "a/scores"
    stop_midway(command("a"), scores_folder, files=1, number=number)
    assert not (tmp_path / "a.json").exists()
    saved = len(list(scores_folder.glob("[0-9]*.npz")))
    assert 1 <= saved < 4

    read = []
    original = ViewSampler.sample_many
    monkeypatch.setattr(
        ViewSampler, "sample_many", lambda self, *a: read.append(a[1]) or original(self, *a)
    )
    cli.main(command("a"))
    assert f"{8 * saved} videos were scored before" in capsys.readouterr().out
    assert sorted(read) == list(range(8 * saved, 25))
    cli.main(command("b"))
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"]
    assert results[0] == results[1] and results[0]["top1"]["count"] == 24
    scored = [
        np.concatenate([x["probabilities"] for x in map(np.load, sorted(part.glob("[0-9]*.npz")))])
        for part in (scores_folder, tmp_path / "b/scores")
    ]
    np.testing.assert_array_equal(*scored)
    # A finished evaluation computes nothing again.
    read.clear()
    cli.main(command("a"))
    assert not read and json.loads((tmp_path / "a.json").read_text()) == results[0]

    said = fails(capsys, *command("a"), "--views=1x1")
    assert "holds results of views 2x1, this command has 1x1: use another --out" in said
    (tmp_path / "list.csv").write_text(rows("val", KINDS, range(9)))
    assert "holds results of videos" in fails(capsys, *command("a"))


def test_mistakes_are_one_line(classifier, unreadable_list, tmp_path, capsys):
    folder, *_ = classifier
    command = ["evaluate", "--checkpoint", folder, "--manifest"]
    assert "use such as 5x3" in fails(capsys, *command, unreadable_list, "--views=0x3")
    out = tmp_path / "out"
    for size in (0, 12):
        said = fails(capsys, *command, unreadable_list, f"--batch-size={size}", "--out", out)
        assert f"batch {size} is not divisible by 8 devices: use 8" in said and not out.exists()
    assert "has no ema" in fails(capsys, *command, unreadable_list, "--ema")
    other = tmp_path / "other.csv"
    other.write_text(rows("val", ("run",), [0]))
    assert "first 'run'" in fails(capsys, *command, other)
    other.write_text(rows("val", ("run",), [0], label=lambda _: "7"))
    assert "label 7, the model knows 3 classes: use labels 0 to 2" in fails(capsys, *command, other)
    other.write_text("bad.mp4 0\n")
    (tmp_path / "bad.mp4").write_text("")
    assert "nothing to measure: 1 of 1" in fails(capsys, *command, other)


def test_views_that_videos_do_not_allow(classifier, tmp_path, capsys):
    folder, *_ = classifier
    # Of 48 frames, 4 at stride 4 can start at 9 positions; 50 clips use 8 of them, by the
    # rounding of the reference. The videos are square, as the clips are: only one crop.
    (tmp_path / "square.csv").write_text(rows("val", KINDS, [0]))
    command = ["evaluate", "--checkpoint", folder, "--manifest", tmp_path / "square.csv"]
    said = fails(capsys, *command, "--views=50x3")
    assert "clips 50, but there are only 8 different ones and crops 3, but there are only 1" in said
    assert said.endswith("use --views 8x1")
    assert "use --views 5x1" in fails(capsys, *command, "--views=5x3")
    # The views of the recipe are reduced without an error.
    cli.main(list(map(str, command)))
    said = capsys.readouterr().out
    assert "views 5x3 of the recipe" in said and "5x1 views, 4x4 frames" in said


def test_short_videos_are_counted(classifier, tmp_path, capsys):
    folder, *_ = classifier
    for name, count in (("a", 12), ("b", 13), ("c", 40)):
        write_video(tmp_path / f"{name}.mp4", count=count, width=96, height=64)
    (tmp_path / "list.csv").write_text("a.mp4 jump\nb.mp4 roll\nc.mp4 walk\n")
    command = ["evaluate", "--checkpoint", folder, "--manifest", tmp_path / "list.csv"]
    cli.main([*map(str, command), "--views=3x3"])
    said = capsys.readouterr().out
    assert "1 videos are shorter than a clip of 13 frames: frames are repeated" in said
    assert "2 videos are too short for 3 different clips" in said
    (tmp_path / "list.csv").write_text("a.mp4\nb.mp4\n")
    assert "has no labels" in fails(capsys, *command)


def test_checkpoints_of_other_kinds_are_refused(tmp_path, capsys):
    tensors, _ = find_tensors(read_torch(DATA / "pretrain_tiny.pth"), source="x")
    rest = {key: x for key, x in tensors.items() if not key.startswith("encoder.")}
    write_torch(tmp_path / "x.pth", {"model": rest})
    command = ["evaluate", "--manifest", CLIPS / "val.csv", "--checkpoint"]
    heads = ["--num-heads=3"]
    with pytest.raises(UserError, match="missing     every block of the encoder"):
        load_checkpoint(str(tmp_path / "x.pth"), decoder_num_heads=2)
    assert "missing     every block of the encoder" in fails_late(
        capsys, [*command, tmp_path / "x.pth", *heads]
    )


def fails_late(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(map(str, command)))
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_processes_take_the_views_of_the_first(monkeypatch):
    """One that can read no video knows nothing of their lengths."""
    monkeypatch.setattr(evaluate, "distinct_views", lambda sampler, videos: (0, 0))
    monkeypatch.setattr(evaluate, "numbers_of_first", lambda numbers: [2, 1])
    config, videos = load_config("finetune:tiny,custom"), Videos(("a",), None, None, "a")
    assert evaluate.choose_views(None, config, videos, report=print) == (2, 1)
