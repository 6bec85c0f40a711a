"""`videomae demo`: from a folder to a classifier."""

import shutil

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
    assert "pre-trained" in printed and "from scratch" in printed and "33.3%" in printed


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
