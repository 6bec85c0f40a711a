"""`videomae predict`: the classes of videos of any length."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from golden import DATA
from runs import CLIPS, KINDS, ROOT, fails
from videos import write_video

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.training.checkpoint import Checkpoints
from videomae_jax.training.step import TrainState


def test_the_classes_of_long_short_and_unreadable_videos(classifier, tmp_path, capsys):
    folder, *_ = classifier
    long = write_video(tmp_path / "long.mp4", count=100)
    short = write_video(tmp_path / "short.mp4", count=3)
    bad = tmp_path / "bad.mp4"
    bad.write_text("")
    file = tmp_path / "result.json"
    command = ["predict", long, bad, short, "--checkpoint", folder, "--json", file, "--top"]
    with pytest.raises(SystemExit, match="1"):
        cli.main(list(map(str, [*command, 2])))
    said = capsys.readouterr()
    assert f"cannot read {bad}" in said.err and "1 of 3 videos unreadable" in said.err
    first, second, third = json.loads(file.read_text())
    assert f"{long}  (7 windows)" in said.out and len(third["windows"]) == 1
    assert second["video"] == str(bad) and "error" in second
    seconds = [(window["start"], window["end"]) for window in first["windows"]]
    np.testing.assert_allclose(seconds[1], (16 / 30, 29 / 30), atol=1e-6)
    assert first["windows"][-1]["last_frame"] == 96 and first["windows"][5]["first_frame"] == 80
    assert len(first["top"]) == 2 and {row["name"] for row in first["top"]} <= set(KINDS)
    assert first["top"][0]["probability"] >= first["top"][1]["probability"]
    assert "use 1 to 3" in fails(capsys, *command, 9)


def test_averaged_weights_are_used_with_ema(classifier, tmp_path, capsys):
    _, params, config = classifier
    average = jax.tree.map(np.copy, params)
    average["head"]["bias"] = average["head"]["bias"] + np.array([0, 0, 99], np.float32)
    config = config.copy_and_resolve_references()
    state = TrainState(np.int32(1), params, {}, np.int32(0), average)
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(1, jax.tree.map(jax.numpy.asarray, state), config)
    checkpoints.close()
    clip = write_video(tmp_path / "a.mp4", count=40)
    command = ["predict", clip, "--checkpoint", str(tmp_path), "--top=1", "--ema"]
    cli.main(command)
    assert "100.0%  walk" in capsys.readouterr().out
    video = np.zeros([1, 4, 32, 32, 3], np.uint8)
    logits = [vm.load(str(tmp_path), ema=ema).logits(video)[0, 2] for ema in (True, False)]
    np.testing.assert_allclose(logits[0] - logits[1], 99, rtol=1e-4)
    file = [str(DATA / "finetune_tiny_deepspeed.pth"), "--num-heads=3", "--ema"]
    assert "has no ema: leave out --ema" in fails(capsys, *command[:3], *file)


def test_a_released_file_is_read_and_up_to_five_classes_are_named(tmp_path, capsys):
    file = DATA / "finetune_tiny_deepspeed.pth"
    clip = CLIPS / "train/walk/walk_000.mp4"
    result = tmp_path / "result.json"
    options = ["--num-heads", "3", "--json", str(result)]
    cli.main(["predict", str(clip), "--checkpoint", str(file), *options])
    (video,) = json.loads(result.read_text())
    assert len(video["top"]) == 5 and video["top"][0]["name"] in map(str, range(10))
    assert sum(row["probability"] for row in video["top"]) < 1 + 1e-6
    with pytest.raises(SystemExit):
        cli.main(["predict", str(clip), "--checkpoint", str(file)])
    assert "--num-heads" in capsys.readouterr().err


BOXES = """video,timestamp,x1,y1,x2,y2,score
a,1,.1,.2,.4,.9,.95
a,1.1,.5,.2,.9,.9,.9
a,2,.2,.2,.6,.9,.5
"""


def test_the_actions_of_persons_in_boxes(detector, tmp_path, capsys):
    folder, *_ = detector
    film = write_video(tmp_path / "a.mp4", count=70)
    (tmp_path / "boxes.csv").write_text(BOXES)
    command = ["predict", film, "--checkpoint", folder, "--boxes", tmp_path / "boxes.csv"]
    command += ["--out", tmp_path / "new/b.mp4", "--json", tmp_path / "a.json"]
    command += ["--detections", tmp_path / "a.csv", "--min-score=.4", "--threshold=0"]
    cli.main(list(map(str, command)))
    said = capsys.readouterr()
    assert "boxes: corners are fractions" in said.err
    assert "boxes at 2 of 3 times used" in said.err
    first, second, last = said.out.splitlines()
    assert first.startswith("    1.00 s  0.100 0.200 0.400 0.900  person 0.95  ")
    assert all(name in first for name in KINDS) and "person 0.50" in second
    assert last == f"{tmp_path}/new/b.mp4: 70 frames"

    result = json.loads((tmp_path / "a.json").read_text())
    assert result["video"] == film and [row["seconds"] for row in result["persons"]] == [1, 2]
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()]
    assert [row[:2] + row[6:7] for row in rows] == [
        ["a", second, number] for second in ("0001", "0002") for number in "123"
    ]
    assert all(len(row[-1].split(".")[1]) >= 5 for row in rows)
    scores = [score for row in result["persons"] for score in row["actions"].values()]
    np.testing.assert_allclose([float(row[-1]) for row in rows], scores, atol=1e-6)
    found = vm.load(folder).detect(film, tmp_path / "boxes.csv", min_score=0.4)
    assert [row.actions for row in found] == [row["actions"] for row in result["persons"]]

    # Only what is likely is printed, by score.
    cli.main(list(map(str, ["predict", film, "--checkpoint", folder, "--boxes=whole"])))
    for line in capsys.readouterr().out.splitlines():
        shown = [float(text.split()[1]) for text in line.split("  ")[-1].split(", ") if text != "-"]
        assert shown == sorted(shown, reverse=True) and all(score >= 0.3 for score in shown)


def test_boxes_and_models_that_do_not_fit(classifier, detector, tmp_path, capsys):
    film = write_video(tmp_path / "a.mp4", count=70)
    other = write_video(tmp_path / "b.mp4", count=3)
    (tmp_path / "boxes.csv").write_text(BOXES)
    boxes = ["--boxes", tmp_path / "boxes.csv"]
    plain = ["predict", film, "--checkpoint", classifier[0]]
    assert "--boxes is for detectors" in fails(capsys, *plain, *boxes)
    assert "--threshold is for detectors" in fails(capsys, *plain, "--threshold=0")
    command = ["predict", film, "--checkpoint", detector[0]]
    said = fails(capsys, *command)
    assert "give --boxes FILE" in said and "docs/detection.md" in said
    assert "--top is for classifiers" in fails(capsys, *command, *boxes, "--top=1")
    assert "2 videos: give a detector one" in fails(capsys, "predict", other, *command[1:], *boxes)
    assert "use 0 to 1" in fails(capsys, *command, *boxes, "--threshold=2")
    assert "does not end in .mp4" in fails(capsys, *command, *boxes, "--out=b.gif")
    assert "is the video itself" in fails(capsys, *command, *boxes, "--out", film)
    said = fails(capsys, "predict", other, *command[2:], *boxes)
    assert "none is named 'b'; the first is 'a'" in said
    assert not (tmp_path / "new").exists()


def test_what_takes_seconds_to_import_is_not_imported(classifier, tmp_path):
    """TensorFlow above all: windows and views are read with PyAV alone."""
    film = write_video(tmp_path / "a.mp4", count=20)
    (tmp_path / "list.csv").write_text(f"{film} {KINDS[0]}")
    code = f"""
import sys
for name in ("tensorflow", "matplotlib", "clu", "dm_pix"):
    sys.modules[name] = None  # importing it raises ImportError
from videomae_jax import cli
cli.main(["predict", {film!r}, "--checkpoint", {str(classifier[0])!r}])
out = {str(tmp_path / "a.npz")!r}
cli.main(["extract", {film!r}, "--checkpoint", {str(classifier[0])!r}, "--out", out])
manifest = {str(tmp_path / "list.csv")!r}
cli.main(["evaluate", "--checkpoint", {str(classifier[0])!r}, "--manifest", manifest])
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
    assert (tmp_path / "a.npz").exists()
