"""A work directory that fills up, goes away or turns read-only while a run writes to it."""

import os
import resource
import shutil
import subprocess

import pytest
from processes import saved_steps, train_struck

from videomae_jax.training.checkpoint import load_params
from videomae_jax.training.workdir import disk_reason


@pytest.fixture
def strike(tmp_path, monkeypatch, capsys):
    """Train, do something to the disk after the save of step 4; returns what was said."""
    workdir = tmp_path / "run"

    def train(happen):
        assert train_struck(workdir, tmp_path, lambda: happen(workdir), monkeypatch) == 1
        said = capsys.readouterr().err.strip()
        assert said.startswith("videomae: cannot write to") and said.count("\n") == 0, said
        return said

    train.workdir = workdir
    return train


@pytest.mark.slow
def test_a_file_that_cannot_grow_ends_the_run_and_leaves_the_last_checkpoint(strike):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(workdir):
        # As on a full disk, but for the words; enough for the logs, not for the parameters.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))

    try:
        said = strike(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large; its last checkpoint is step 4" in said
    assert saved_steps(strike.workdir) == [4]
    assert load_params(str(strike.workdir))  # whole: its digests are compared


@pytest.mark.slow
def test_a_work_directory_that_is_removed(strike):
    said = strike(shutil.rmtree)
    assert "the directory is gone; it has no checkpoint" in said


@pytest.mark.slow
def test_a_work_directory_that_turns_read_only(strike):
    mounted = []

    def freeze(workdir):
        command = ["mount", "--bind", str(workdir), str(workdir)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount")
        mounted.append(workdir)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(workdir)], check=True)

    try:
        said = strike(freeze)
    finally:
        for workdir in mounted:
            subprocess.run(["umount", "--lazy", str(workdir)], check=True)
    assert "Read-only file system; its last checkpoint is step 4" in said
    assert saved_steps(strike.workdir) == [4]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "/elsewhere"), "No space left on device"),
        (RuntimeError("x.cc: ...; No space left on device\n\tFailed"), "No space left on device"),
        (ValueError("shapes do not match"), None),
        (FileNotFoundError(2, "No such file or directory", "/elsewhere/clip.mp4"), None),
    ],
)
def test_what_is_about_the_disk_and_what_is_not(tmp_path, error, reason):
    assert disk_reason(error, str(tmp_path)) == reason
    inside = FileNotFoundError(2, "No such file", str(tmp_path / "run/x"))
    assert disk_reason(inside, str(tmp_path)) == f"No such file: {tmp_path}/run/x"
    os.rmdir(tmp_path)
    assert disk_reason(error, str(tmp_path)) == "the directory is gone"
