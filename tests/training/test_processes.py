"""Two processes that train together: what they compute, and what they do when one is struck."""

import signal
import time

import numpy as np
import pytest
from processes import (
    HEARTBEAT,
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

STEPS = "--config.steps=12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def videos(folder):
    return write_manifest(folder)


@pytest.fixture(scope="module")
def straight(folder, videos):
    """A run of two processes that nobody disturbed."""
    train(folder / "straight", videos, STEPS, "--config.save_every=5", count=2, devices=2)
    return folder / "straight"


def test_two_processes_compute_what_one_does(straight, folder, videos):
    train(folder / "one", videos, STEPS, count=1, devices=1)
    np.testing.assert_allclose(values(straight), values(folder / "one"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices,axis", [(1, "tensor=2"), (2, "fsdp=4")])
def test_two_processes_share_parameters(straight, folder, videos, devices, axis):
    workdir = folder / axis
    train(workdir, videos, STEPS, f"--config.mesh.{axis}", count=2, devices=devices)
    np.testing.assert_allclose(values(workdir), values(straight), rtol=1e-5)


def test_only_the_first_of_several_writes_the_log(straight):
    assert "step 1/12" in log(straight, 0).read_text()
    assert "step 1/12" not in log(straight, 1).read_text()
    assert len(list((straight / "tensorboard").iterdir())) == 1
    assert len((straight / "metrics.jsonl").read_text().splitlines()) == 12


@pytest.mark.slow
def test_a_signal_to_one_saves_a_common_step_and_ends_all_with_42(straight, folder, videos):
    workdir = folder / "stopped"
    slow = "--config.save_every=1"  # leaves time for the signal to arrive in
    with training(workdir, videos, STEPS, slow, count=2, devices=2) as running:
        wait_for_step(workdir, 2, running)
        end(running[1], signal.SIGTERM)
        assert codes(running) == [42, 42], log(workdir, 1).read_text()
    done = max(losses(workdir))
    assert done < 12 and saved_steps(workdir)[-1] == done
    train(workdir, videos, STEPS, count=2, devices=2)
    assert f"going on from step {done}" in log(workdir).read_text()
    assert losses(workdir) == losses(straight)


def test_a_dead_peer_ends_the_other_and_any_topology_goes_on(straight, folder, videos):
    workdir = folder / "killed"
    often = "--config.save_every=3"
    with training(workdir, videos, STEPS, often, count=2, devices=2) as running:
        wait_for_step(workdir, 4, running)
        end(running[1], signal.SIGKILL)
        began = time.monotonic()
        assert codes(running) == [134, 137], log(workdir).read_text()
        # A machine that does other things is given time to say so.
        assert time.monotonic() - began < 3 * HEARTBEAT
    split = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    train(workdir, videos, STEPS, *split, count=1, devices=8)
    np.testing.assert_allclose(values(workdir), values(straight), rtol=1e-6)


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


def test_a_stuck_loader_is_reported_and_ends_the_process(folder, videos):
    workdir = folder / "stuck"
    more = [videos, STEPS, "--config.watchdog_seconds=10", "--config.data.threads=1"]
    with training(workdir, *more, count=1, devices=1, program=HANGS) as running:
        assert codes(running) == [128 + signal.SIGALRM]
    said = log(workdir).read_text()
    assert "Timeout (0:00:10)!" in said
    # Who waits, and for whom.
    assert "in hang" in said and "in __next__" in said and "training/loop.py" in said
