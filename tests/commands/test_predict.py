"""`videomae predict`: the classes of videos of any length."""

import json

import jax
import numpy as np
import pytest
from golden import DATA
from runs import CLIPS, KINDS, fails
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
