"""`videomae demo`: from a folder to a classifier."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from runs import CLIPS, KINDS, fails

from videomae_jax import cli
from videomae_jax.commands import demo


@pytest.fixture
def short(monkeypatch):
    """Shorten every training, and return the commands that were run."""
    commands = []
    run_part = demo.run_part

    def run(part):
        command = part.command
        if command[0] == "train":
            command += ("--config.steps=4", "--config.warmup_steps=1", "--config.batch_size=4")
        commands.append(part.command[0])
        run_part(part._replace(command=command))

    monkeypatch.setattr(demo, "run_part", run)
    return commands


def copy_clips(folder, numbers, *, into_classes):
    for kind in KINDS:
        for number in numbers:
            target = folder / (kind if into_classes else ".")
            target.mkdir(parents=True, exist_ok=True)
            name = f"{kind}_{number:03d}.mp4"
            shutil.copy(CLIPS / f"train/{kind}/{name}", target / name)


@pytest.mark.slow
def test_a_folder_of_classes_becomes_a_classifier(short, tmp_path, capsys):
    copy_clips(tmp_path / "mine", range(4), into_classes=True)
    workdir = tmp_path / "run"
    cli.main(["demo", str(tmp_path / "mine"), f"--workdir={workdir}"])
    assert short == ["data", "train", "visualize", "train", "train", "predict"]
    for ending in ("png", "gif"):
        assert (workdir / f"reconstruction.{ending}").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "pre-trained" in printed and "from scratch" in printed and "33.3 %" in printed


def test_the_accuracies_have_intervals(tmp_path, capsys):
    for folder, right in (("classifier", 78), ("from_scratch", 53)):
        (tmp_path / folder).mkdir()
        rows = [{"step": 1, "eval/loss": 1.0, "eval/top1": 0.0}, {"step": 2, "loss": 1.0}]
        rows.append({"step": 2, "eval/loss": 1.0, "eval/top1": right / 144})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / folder / "metrics.jsonl").write_text(text)
    demo.print_accuracies(tmp_path, videos=144, classes=12)
    first, *lines = capsys.readouterr().out.splitlines()
    assert "95 % interval of 144 videos" in first
    assert [line.split(maxsplit=1)[1] for line in (lines[0], lines[2])] == [
        "54.2 % (46.0 % - 62.1 %)",
        "8.3 %",
    ]
    assert lines[1].endswith("from scratch   36.8 % (29.4 % - 44.9 %)")


@pytest.mark.slow
def test_without_classes_it_ends_with_the_reconstruction(short, tmp_path, capsys):
    copy_clips(tmp_path / "mine", range(4), into_classes=False)
    cli.main(["demo", str(tmp_path / "mine"), f"--workdir={tmp_path / 'run'}"])
    assert short == ["data", "train", "visualize"]
    assert "classified" not in capsys.readouterr().out


def test_several_labels_a_video_are_refused_before_the_training(short, tmp_path, capsys):
    copy_clips(tmp_path, [0], into_classes=False)
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("jump_000.mp4 jump|up\nroll_000.mp4 roll\n")
    said = fails(capsys, "demo", tmp_path, f"--workdir={tmp_path / 'run'}")
    assert "train.csv has several labels a video" in said and not short


def test_a_folder_that_does_not_exist(tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", str(tmp_path / "none"), f"--workdir={tmp_path / 'run'}"])
    assert stopped.value.code == 1
    assert f"no such folder or annotation file: {tmp_path / 'none'}" in capfd.readouterr().err


# Stands in for `videomae train`, which takes a moment to save.
SAVES = f"""#!{sys.executable}
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(42)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
pathlib.Path("started").touch()
time.sleep(300)
"""
RUN_PART = """
import sys
from videomae_jax.commands import demo
sys.executable = "./saves"
demo.run_part(demo.Part("Train", ("train",)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_part_the_time_to_save(number, tmp_path):
    (tmp_path / "saves").write_text(SAVES)
    (tmp_path / "saves").chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_PART],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        assert process.wait(100) == 42
        assert (tmp_path / "saved").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
