"""Run commands on small models and real clips, as a user would, and read what they leave."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.devices.sharding import path_name
from videomae_jax.tasks import pretrain
from videomae_jax.training.workdir import read_metrics

ROOT = Path(__file__).parent.parent
CLIPS = ROOT / "data/mocap_studio"
KINDS = ("jump", "roll", "walk")  # the classes of labelled lists
# The smallest pre-training that is still one.
SMALL = [
    "--config=demo",
    # As in the paper; other readers of weights know only these positions.
    "--config.mask.kind=tube",
    "--config.model.positions=1d",
    "--config.clip.frames=4",
    "--config.clip.stride=3",
    "--config.clip.height=16",
    "--config.clip.width=16",
    "--config.model.patch=(2,8,8)",
    "--config.model.encoder.depth=1",
    "--config.model.decoder.depth=1",
    "--config.batch_size=8",
    "--config.warmup_steps=2",
    "--config.log_every=1",
]

# Of a classifier of these classes.
CLASSIFIER = [
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=16" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.model.classes=3",
    f"--config.data.class_names={KINDS}",
]

# Of a detector of these actions.
DETECTOR = CLASSIFIER

# A pre-training of one block and one of the decoder, at 32 x 32.
TINY = [
    "--config.clip.height=32",
    "--config.clip.width=32",
    "--config.clip.frames=4",
    "--config.mask.ratio=0.75",
    "--config.batch_size=8",
    "--config.lr=1e-3",
    "--config.base_lr=0",
    "--config.model.encoder.depth=1",
    "--config.model.decoder.depth=1",
]


def tiny(*overrides):
    """Return the config of a tiny pre-training."""
    return load_config("pretrain:tiny,custom", [*TINY, *overrides])


def rows(name, kinds, numbers, label=str):
    """Return lines of a labelled manifest of the demo's clips."""
    return "\n".join(
        f"{CLIPS}/{name}/{kind}/{kind}_{number:03d}.mp4 {label(kind)}"
        for kind in kinds
        for number in numbers
    )


def losses(workdir):
    """Return {step: (loss, gradient norm)} of a run, every bit of both."""
    return {
        row["step"]: (row["loss"].hex(), row["grad_norm"].hex())
        for row in read_metrics(workdir)
        if "loss" in row
    }


def held_out(workdir):
    """Return the lines of a run about its held-out videos."""
    return [row for row in read_metrics(workdir) if "eval/loss" in row]


def fails(capsys, *args):
    """Run a command that must end with exit code 1; returns the one or two lines it says."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(map(str, args)))
    assert stopped.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("videomae: ") and said.count("\n") <= 1, said
    return said


# Runs a command that saves its results after every batch.
SAVE_OFTEN = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 8)
from videomae_jax import cli
from videomae_jax.inference import resumable
resumable.SECONDS = 0.0
cli.main(sys.argv[1:])
"""


def stop_midway(command, folder, *, files, number):
    """Run a command in a process and send it a signal when `folder` has so many files."""
    arguments = [sys.executable, "-c", SAVE_OFTEN, *command]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(list(folder.glob("[0-9]*.npz"))) < files:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == (42 if number == signal.SIGTERM else -9)
    assert ("the same command resumes" in said) == (number == signal.SIGTERM)


def count_norms_taken_in(config) -> int:
    """How many numbers are the scale or bias of a norm inside the layer after it."""
    params = jax.eval_shape(pretrain.build_task(config).init, jax.random.key(0))
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if re.search(r"/blocks/norm[12]/|^decoder/norm/", path_name(path))
    )


def environment(test_file):
    """Return the environment of a child process that may import a test file and its helpers."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(test_file), *sys.path])}
