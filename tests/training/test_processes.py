"""Two processes that train together: what they compute, and what they do when one is struck."""

import shutil
import signal
import time

import numpy as np
import pytest
import runs
from processes import (
    HEARTBEAT,
    SMALL,
    codes,
    end,
    log,
    losses,
    saved_steps,
    train,
    training,
    values,
    wait_for_step,
    write_manifest,
)

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.sources import read_videos
from videomae_jax.tasks import pretrain

STEPS, EVERY = "--config.steps=12", "--config.save_every=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def videos(folder):
    return write_manifest(folder)


@pytest.fixture(scope="module")
def one(folder, videos):
    """The losses of one process that nobody disturbed."""
    cli.main(["train", f"--workdir={folder}/one", *SMALL, videos, STEPS])
    return values(folder / "one")


@pytest.fixture(scope="module")
def stopped(folder, videos):
    """A run of two processes after a SIGTERM to the second of them."""
    workdir = folder / "stopped"
    # Saving after each step leaves time for the signal to arrive.
    with training(workdir, videos, STEPS, EVERY, count=2, devices=2) as running:
        wait_for_step(workdir, 2, running)
        end(running[1], signal.SIGTERM)
        assert codes(running) == [42, 42], log(workdir, 1).read_text()
    return workdir


@pytest.fixture(scope="module")
def straight(folder, videos):
    """A run of two processes that nobody disturbed."""
    train(folder / "straight", videos, STEPS, count=2, devices=2)
    return folder / "straight"


@pytest.mark.slow
def test_two_processes_compute_what_one_does(stopped, one):
    done = values(stopped)
    np.testing.assert_allclose(done, one[: len(done)], rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_saves_a_common_step_and_ends_all_with_42(stopped):
    done = max(losses(stopped))
    assert done < 12 and saved_steps(stopped)[-1] == done


@pytest.mark.slow
def test_only_the_first_of_several_writes_the_log(stopped):
    assert "step 1/12" in log(stopped, 0).read_text()
    assert "step 1/12" not in log(stopped, 1).read_text()
    assert len(list((stopped / "tensorboard").iterdir())) == 1
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == max(losses(stopped))


@pytest.mark.slow
def test_a_dead_peer_ends_the_other_and_any_topology_goes_on(stopped, one, folder, videos):
    workdir = shutil.copytree(stopped, folder / "killed")
    saved = saved_steps(workdir)[-1]
    with training(workdir, videos, STEPS, EVERY, count=2, devices=2) as running:
        wait_for_step(workdir, saved + 2, running)
        end(running[1], signal.SIGKILL)
        began = time.monotonic()
        assert codes(running) == [134, 137], log(workdir).read_text()
        # A busy machine is given time to report it.
        assert time.monotonic() - began < 5 * HEARTBEAT
    assert f"going on from step {saved}" in log(workdir).read_text()
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    cli.main(["train", f"--workdir={workdir}", *SMALL, videos, STEPS, *mesh])
    np.testing.assert_allclose(values(workdir), one, rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_was_signalled_goes_on_bit_for_bit(stopped, straight, folder, videos):
    workdir = shutil.copytree(stopped, folder / "resumed")
    train(workdir, videos, STEPS, count=2, devices=2)
    assert losses(workdir) == losses(straight)


@pytest.mark.slow
@pytest.mark.parametrize("devices,axis", [(1, "tensor=2"), (2, "fsdp=4")])
def test_two_processes_share_parameters(straight, folder, videos, devices, axis):
    workdir = folder / axis
    train(workdir, videos, STEPS, f"--config.mesh.{axis}", count=2, devices=devices)
    np.testing.assert_allclose(values(workdir), values(straight), rtol=1e-5)


SCORES = """
import sys
from videomae_jax import cli
from videomae_jax.tasks import pretrain
build = pretrain.build_task
def build_scored(config):
    def score(videos, ids, values):
        assert ids.tolist() == list(range(len(videos)))
        return {"pixel": float(values @ (1 + ids))}
    outputs = lambda params, batch: batch["video"].mean((1, 2, 3, 4))
    return build(config)._replace(outputs=outputs, score=score)
pretrain.build_task = build_scored
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_score_sees_the_clips_of_all_processes(folder, videos):
    """The last batch of the ten held-out clips is partial, and one process has more of it."""
    workdir, held_out = folder / "scored", folder / "held.csv"
    held_out.write_text("\n".join((folder / "train.csv").read_text().split()[:10]))
    options = [videos, f"--config.data.eval={held_out}", "--config.steps=3"]
    with training(workdir, *options, count=2, devices=2, program=SCORES) as running:
        assert codes(running) == [0, 0], log(workdir).read_text()
    sampler = pretrain.eval_sampler(load_config("demo", runs.SMALL[1:]))
    clips = [sampler(read_videos(held_out), index, None) for index in range(10)]
    (row,) = runs.held_out(workdir)
    expected = sum((1 + index) * clip.mean() for index, clip in enumerate(clips))
    assert row["eval/pixel"] == pytest.approx(expected, rel=1e-6)


HANGS = """
import sys, threading, time
from videomae_jax import cli
from videomae_jax.data import samplers
read = samplers.PretrainSampler.sample_many
calls = []
def hang(sample, videos, index, rngs):
    calls.append(index)
    if len(calls) > 24:
        time.sleep(3600)
    return read(sample, videos, index, rngs)
samplers.PretrainSampler.sample_many = hang
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_stuck_loader_is_reported_and_ends_the_process(folder, videos):
    workdir = folder / "stuck"
    more = [videos, STEPS, "--config.watchdog_seconds=5", "--config.data.threads=1"]
    with training(workdir, *more, count=1, devices=1, program=HANGS) as running:
        assert codes(running) == [128 + signal.SIGALRM]
    said = log(workdir).read_text()
    assert "Timeout (0:00:05)!" in said
    assert "in hang" in said and "in __next__" in said and "training/loop.py" in said
