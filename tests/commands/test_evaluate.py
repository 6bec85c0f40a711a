"""The test of a classifier and its use: every example once, whatever the views and devices."""

import csv
import json
import math
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from golden import DATA, read_torch
from runs import CLIPS, KINDS, ROOT, fails, rows
from videos import write_video

import videomae_jax as vm
from videomae_jax import cli, metrics
from videomae_jax.data import sampling
from videomae_jax.data.samplers import ViewSampler
from videomae_jax.data.sources import read_videos
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.devices.sharding import make_mesh
from videomae_jax.errors import UserError
from videomae_jax.inference.engine import predict_videos
from videomae_jax.interop.checkpoint_files import load_checkpoint
from videomae_jax.interop.convert import find_tensors
from videomae_jax.interop.torch_file import write_torch
from videomae_jax.tasks import classify
from videomae_jax.training.checkpoint import Checkpoints
from videomae_jax.training.step import TrainState

RUN = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 8)
from videomae_jax import cli
from videomae_jax.inference import resumable
resumable.SECONDS = 0.0  # a file for each batch
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Ten videos, two of them unreadable, and two with one name in two folders."""
    folder = tmp_path_factory.mktemp("videos")
    for place, kind in (("a", "jump"), ("b", "walk")):
        (folder / place).mkdir()
        source = CLIPS / f"val/{kind}/{kind}_001.mp4"
        (folder / place / "same.mp4").write_bytes(source.read_bytes())
    (folder / "bad.mp4").write_text("not a video")
    lines = [rows("val", KINDS, [0, 2]), "bad.mp4 roll", "gone.mp4 walk"]
    (folder / "list.csv").write_text("\n".join([*lines, "a/same.mp4 jump", "b/same.mp4 walk"]))
    return folder / "list.csv"


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_every_example_counts_once_on_any_number_of_devices(classifier, manifest, devices):
    _, params, config = classifier
    videos = read_videos(manifest)
    model = classify.build_model(config)
    bad = BadVideos(videos, max_share=1.0)
    found = predict_videos(
        lambda params, video: classify.view_probabilities(model, params, video),
        params,
        videos,
        sampler=classify.view_sampler(config, segments=2, crops=3),
        batch_size=devices,
        mesh=make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices]),
        threads=1,
        bad=bad,
    )
    assert found.ids.tolist() == [0, 1, 2, 3, 4, 5, 8, 9]
    assert sorted(bad.reasons) == [videos.paths[6], videos.paths[7]]
    # By hand: each view alone, then the mean.
    sample = classify.view_sampler(config, segments=2, crops=3)
    for index, ours in zip(found.ids, found.values, strict=True):
        views = sample(videos, index, None)
        alone = classify.view_probabilities(model, params, views[:, None])
        np.testing.assert_allclose(ours, alone.mean(axis=0), atol=1e-6)
    assert len({tuple(row.round(5)) for row in found.values}) == 8


def test_the_command_says_the_number_its_interval_and_the_protocol(
    classifier, manifest, tmp_path, capsys
):
    folder, *_ = classifier
    out, file = tmp_path / "out", tmp_path / "result.json"
    command = ["evaluate", "--checkpoint", folder, "--manifest", manifest, "--out", out]
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


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_evaluation_goes_on_to_the_same_numbers(
    classifier, tmp_path, number, capsys, monkeypatch
):
    folder, *_ = classifier
    (tmp_path / "list.csv").write_text(rows("val", KINDS, range(8)) + "\nbad.mp4 roll")
    (tmp_path / "bad.mp4").write_text("")

    def command(name):
        options = ["--manifest", tmp_path / "list.csv", "--views=2x1", "--batch-size=8"]
        places = ["--out", tmp_path / name, "--json", tmp_path / f"{name}.json"]
        return [*map(str, ["evaluate", "--checkpoint", folder, *options, *places])]

    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *command("a")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    scores_folder, deadline = tmp_path / "a/scores", time.monotonic() + 200
    while not list(scores_folder.glob("[0-9]*.npz")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == (42 if number == signal.SIGTERM else -9)
    assert ("the same command resumes" in said) == (number == signal.SIGTERM)
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
    # What is finished is only read again.
    read.clear()
    cli.main(command("a"))
    assert not read and json.loads((tmp_path / "a.json").read_text()) == results[0]

    said = fails(capsys, *command("a"), "--views=1x1")
    assert "holds results of views 2x1, this command has 1x1: use another --out" in said
    (tmp_path / "list.csv").write_text(rows("val", KINDS, range(9)))
    assert "holds results of videos" in fails(capsys, *command("a"))


def test_mistakes_are_one_line(classifier, manifest, tmp_path, capsys):
    folder, *_ = classifier
    command = ["evaluate", "--checkpoint", folder, "--manifest"]
    assert "use such as 5x3" in fails(capsys, *command, manifest, "--views=0x3")
    said = fails(capsys, *command, manifest, "--batch-size=12")
    assert "batch 12 is not divisible by 8 devices: use 8" in said
    assert "has no ema" in fails(capsys, *command, manifest, "--ema")
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
    # 48 frames, every fourth: 12, and 9 places for 4 of them, of which 50 clips, by the
    # rounding of the reference, take 8. Square, as the clip is.
    (tmp_path / "square.csv").write_text(rows("val", KINDS, [0]))
    command = ["evaluate", "--checkpoint", folder, "--manifest", tmp_path / "square.csv"]
    said = fails(capsys, *command, "--views=50x3")
    assert "clips 50, but there are only 8 different ones and crops 3, but there are only 1" in said
    assert said.endswith("use --views 8x1")
    assert "use --views 5x1" in fails(capsys, *command, "--views=5x3")
    # The recipe's are no mistake of the user.
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


def test_views_are_segments_by_crops_of_one_reading(tmp_path):
    write_video(tmp_path / "a.mp4", count=40, width=128, height=64)
    sample = ViewSampler(frames=4, stride=2, height=64, width=64, channels=3, segments=3, crops=3)
    views = sample(read_videos(tmp_path), 0, None)
    assert views.shape == sample.shape == (9, 4, 64, 64, 3)
    places = sampling.dense_views(40, segments=3, frames=4, stride=2)
    boxes = sampling.view_boxes(128, 64, target_width=64, target_height=64, crops=3)
    assert boxes == [(0, 0, 64, 64), (32, 0, 64, 64), (64, 0, 64, 64)]
    for view, clip in enumerate(views):
        if view % 3 == 0:  # the crop that holds the first six bits of the numbers
            read = [sum(int(p[4, 4 + 8 * b].mean() > 127) << b for b in range(6)) for p in clip]
            assert read == [place % 64 for place in places[view // 3]]
    one = sampling.view_boxes(64, 128, target_width=64, target_height=64, crops=1)
    assert one == [(0, 32, 64, 64)]


def test_windows_cover_a_video_to_its_end():
    windows = sampling.window_indices(20, frames=4, stride=2, hop=8)
    assert windows.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [12, 14, 16, 18]]
    starts = sampling.window_indices(21, frames=4, stride=2, hop=3)[:, 0]
    assert starts.tolist() == [0, 3, 6, 9, 12, 13]
    assert sampling.window_indices(16, frames=4, stride=2, hop=8).shape == (2, 4)
    assert sampling.window_indices(5, frames=4, stride=2, hop=8).tolist() == [[0, 2, 4, 4]]


def test_predict_names_the_classes_of_long_and_short_videos(classifier, tmp_path, capsys):
    folder, *_ = classifier
    long = write_video(tmp_path / "long.mp4", count=100)
    short = write_video(tmp_path / "short.mp4", count=3)
    file = tmp_path / "result.json"
    command = ["predict", long, short, "--checkpoint", folder, "--top", 2, "--json", file]
    cli.main(list(map(str, command)))
    said = capsys.readouterr().out
    first, second = json.loads(file.read_text())
    assert f"{long}  (7 windows)" in said and len(second["windows"]) == 1
    seconds = [(window["start"], window["end"]) for window in first["windows"]]
    np.testing.assert_allclose(seconds[1], (16 / 30, 29 / 30), atol=1e-6)
    assert first["windows"][-1]["last_frame"] == 96 and first["windows"][5]["first_frame"] == 80
    assert len(first["top"]) == 2 and {row["name"] for row in first["top"]} <= set(KINDS)
    assert first["top"][0]["probability"] >= first["top"][1]["probability"]
    assert "use 1 to 3" in fails(capsys, *command[:-4], "--top", 9)
    cli.main(list(map(str, command[:-4])))  # without: as many as there are, up to five
    assert capsys.readouterr().out.count("%") == 2 * len(KINDS)
    bad = tmp_path / "bad.mp4"
    bad.write_text("")
    said = fails_late(capsys, ["predict", bad, short, "--checkpoint", folder, "--top", 1])
    assert f"cannot read {bad}" in said and "1 of 2 videos unreadable" in said


def fails_late(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(map(str, command)))
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_intervals_are_wilsons():
    half = metrics.wilson(50, 100)
    assert (round(half.low, 4), round(half.high, 4)) == (0.4038, 0.5962)
    none, all_ = metrics.wilson(0, 10), metrics.wilson(10, 10)
    assert none.low == 0 and none.high == pytest.approx(0.2775, abs=1e-4)
    assert math.isclose(all_.high, 1) and math.isclose(all_.low, 1 - none.high)
    assert str(half) == "50.0 % (40.4 % - 59.6 %)"


def test_ranks_break_ties_in_class_order():
    probabilities = np.array([[0.5, 0.5, 0], [0.2, 0.3, 0.5], [1 / 3] * 3])
    labels = np.array([1, 2, 2])
    assert metrics.top(probabilities, labels, k=1).value == pytest.approx(1 / 3)
    assert metrics.top(probabilities, labels, k=2).value == pytest.approx(2 / 3)
    assert metrics.confusion(probabilities, labels).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_averaged_weights_are_used_where_asked_for(classifier, tmp_path, capsys):
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
    cli.main(command[:-1])
    assert "100.0%  walk" not in capsys.readouterr().out
    file = [str(DATA / "finetune_tiny_deepspeed.pth"), "--num-heads=3", "--ema"]
    assert "has no ema: leave out --ema" in fails(capsys, *command[:3], *file)


def test_predict_takes_a_file_of_the_released_kind(tmp_path, capsys):
    file = DATA / "finetune_tiny_deepspeed.pth"
    clip = CLIPS / "train/walk/walk_000.mp4"
    result = tmp_path / "result.json"
    options = ["--num-heads", "3", "--json", str(result)]
    cli.main(["predict", str(clip), "--checkpoint", str(file), *options])
    (video,) = json.loads(result.read_text())
    assert [row["name"] for row in video["top"]][0] in map(str, range(10))
    assert sum(row["probability"] for row in video["top"]) < 1 + 1e-6
    with pytest.raises(SystemExit):
        cli.main(["predict", str(clip), "--checkpoint", str(file)])
    assert "--num-heads" in capsys.readouterr().err
