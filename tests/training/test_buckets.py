"""A work directory in a bucket: what a run leaves there, and what a failing bucket does to it."""

import json
import re
import signal
import threading
import time

import jax
import numpy as np
import pytest
from processes import codes, log, losses, train_struck, training, write_manifest

from videomae_jax import paths
from videomae_jax.config import load_config
from videomae_jax.errors import UserError
from videomae_jax.training import checkpoint, lock
from videomae_jax.training.checkpoint import Checkpoints, digests, has_checkpoint, load_params
from videomae_jax.training.lock import lock_workdir
from videomae_jax.training.step import TrainState
from videomae_jax.training.workdir import make_workdir

# Up to three starts in a test, each of half a minute on a busy machine.
pytestmark = pytest.mark.timeout(900)
STEPS, EVERY = 8, 2


def state(step):
    leaf = {"kernel": jax.numpy.arange(64.0) + step}
    return TrainState(np.int32(step), leaf, {"mu": leaf}, np.int32(0))


def restore(workdir):
    """Return the step and the state that a run would go on from."""
    checkpoints = Checkpoints(workdir, keep=3)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state(0)
    )
    found = checkpoints.restore(shapes, check=lambda config: None)
    checkpoints.close()
    return found


def saved(workdir):
    """Return the steps of the checkpoints in a bucket that are whole."""
    folder = f"{workdir}/checkpoints"
    steps = [name for name in paths.names(folder) if name.isdigit()]
    return [int(s) for s in steps if paths.exists(f"{folder}/{s}/commit_success.txt")]


def damage(folder):
    """Flip a byte in the middle of the largest object under a folder."""
    files = [f"{folder}/d/{name}" for name in paths.names(f"{folder}/d")]
    largest = max(files, key=paths.size)
    data = bytearray(paths.read_bytes(largest))
    data[len(data) // 2] ^= 255
    paths.write_whole(largest, bytes(data))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_an_unfinished_one_is_not_seen(bucket):
    make_workdir(bucket.url)
    assert not has_checkpoint(bucket.url)
    checkpoints = Checkpoints(bucket.url, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), load_config("demo"))
    checkpoints.close()
    assert saved(bucket.url) == [1, 2, 3]
    paths.remove(f"{bucket.url}/checkpoints/3/commit_success.txt")
    damage(f"{bucket.url}/checkpoints/2/params")
    assert restore(bucket.url).step == 1
    assert paths.names(f"{bucket.url}/checkpoints") == ["1", "2.damaged"]
    assert load_params(bucket.url)[0]["kernel"][-1] == 64


@pytest.mark.slow
def test_a_bucket_that_denies_damages_no_checkpoint(gcs):
    checkpoints = Checkpoints(gcs.url, keep=3)
    checkpoints.save(1, state(1), load_config("demo"))
    checkpoints.close()
    gcs.faults.status, gcs.faults.match = 403, "/o/.*alt=media"
    with pytest.raises(UserError, match="access denied"):
        restore(gcs.url)
    gcs.faults.status = 0
    assert restore(gcs.url).step == 1


@pytest.mark.parametrize(
    ("workdir", "said"),
    [
        ("gs://bucket", "names no folder"),
        ("s3:///run", "names no folder"),
        ("gs://bucket/a#1", "has '#'"),
        ("az://bucket/a", r"use gs://, s3://"),
    ],
)
def test_an_address_that_is_no_work_directory_is_refused(workdir, said):
    with pytest.raises(UserError, match=said):
        make_workdir(workdir)


def test_a_second_run_is_refused_and_a_released_lock_is_free(bucket):
    with lock_workdir(bucket.url):
        with pytest.raises(UserError, match=r"in use by process \d+ on \S+ since \d{4}-"):
            with lock_workdir(bucket.url):
                pass
    with lock_workdir(bucket.url):
        assert paths.names(f"{bucket.url}/.lock") == ["00000002"]


@pytest.mark.slow
def test_a_lock_of_another_machine_is_known_by_its_heartbeat(gcs, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.2)
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    file, holder = f"{gcs.url}/.lock/00000007", {"machine": "elsewhere", "host": "elsewhere"}
    content, ended = json.dumps(holder).encode(), threading.Event()
    assert paths.create(file, content)
    beating = threading.Thread(target=lock._beat_object, args=(file, content, ended))
    beating.start()
    with pytest.raises(UserError, match="on elsewhere"), lock_workdir(gcs.url):
        pass
    ended.set()
    beating.join()
    with lock_workdir(gcs.url):  # silent from here on
        assert paths.names(f"{gcs.url}/.lock") == ["00000008"]


@pytest.mark.slow
def test_of_many_that_find_a_dead_lock_one_takes_it(bucket, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.0)
    paths.write_whole(f"{bucket.url}/.lock/00000001", json.dumps({"machine": "gone"}))
    won, ready = [], threading.Barrier(6)
    done = threading.Event()

    def contend():
        ready.wait()
        try:
            with lock_workdir(bucket.url):
                won.append(1)
                done.wait(60)
        except UserError:
            won.append(0)

    several = [threading.Thread(target=contend) for _ in range(6)]
    for thread in several:
        thread.start()
    while len(won) < 6:
        time.sleep(0.05)
    done.set()
    for thread in several:
        thread.join()
    assert sum(won) == 1


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A folder with a manifest and a run on the disk that nobody touched; its arguments."""
    folder = tmp_path_factory.mktemp("straight")
    more = [write_manifest(folder), f"--config.save_every={EVERY}"]
    with training(folder / "run", *more, f"--config.steps={STEPS}", count=1, devices=1) as running:
        assert codes(running) == [0]
    return folder / "run", more


def start(bucket, straight, *more, **how):
    """Start training in a bucket, with the compiled programs of the run on the disk."""
    how = {"count": 1, "devices": 1} | how
    return training(place(bucket, straight), f"--workdir={bucket.url}", *more, **how)


def place(bucket, straight):
    return straight[0].with_name(bucket.url.rpartition("/")[2])


def said(bucket, straight, index=0):
    """Return what a process of `start` printed."""
    return log(place(bucket, straight), index).read_text()


def wait_until(true, running):
    deadline = time.monotonic() + 600
    while not true():
        assert time.monotonic() < deadline and all(p.poll() is None for p in running)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_killed_during_a_save_resumes_bit_for_bit(bucket, straight):
    reference, more = straight
    more = [*more, f"--config.steps={STEPS}"]
    # The last object of step 6 is not written for half a minute.
    bucket.faults.status = 503
    bucket.faults.match = r"^(DELETE|PUT|POST) .*checkpoints(/|%2F)6(/|%2F)commit_success"
    with start(bucket, straight, *more) as running:
        wait_until(lambda: "6" in paths.names(f"{bucket.url}/checkpoints"), running)
        running[0].send_signal(signal.SIGKILL)
        assert codes(running) == [137]
    bucket.faults.status = 0
    assert saved(bucket.url) == [2, 4] and "6" in paths.names(f"{bucket.url}/checkpoints")
    damage(f"{bucket.url}/checkpoints/4/params")
    with start(bucket, straight, *more) as running:
        assert codes(running) == [0], said(bucket, straight)
    assert "checkpoint 4 is damaged" in said(bucket, straight)
    assert "going on from step 2" in said(bucket, straight)
    assert losses(bucket.url) == losses(reference)
    ours, theirs = load_params(bucket.url)[0], load_params(str(reference))[0]
    assert digests(ours) == digests(theirs)
    assert {"metrics.jsonl", "goodput.json", "curve.png", "tensorboard"} <= set(
        paths.names(bucket.url)
    )


@pytest.mark.slow
def test_a_bucket_that_fails_for_a_while_does_not_end_a_run(bucket, straight):
    reference, more = straight
    with start(bucket, straight, *more, f"--config.steps={STEPS}") as running:
        wait_until(lambda: saved(bucket.url), running)
        bucket.faults.status, bucket.faults.left = 503, 6
        assert codes(running) == [0], said(bucket, straight)
    assert bucket.faults.left <= 0
    assert losses(bucket.url) == losses(reference)


@pytest.mark.slow  # gcsfs repeats for half a minute, whatever it is told
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ({"status": 503}, 134, "the bucket cannot be reached"),
        ({"hang": 2.0}, 134, "the bucket cannot be reached"),
        ({"status": 403}, 1, "access denied"),
        ({"status": 404}, 1, "does not exist|not found"),
    ],
    ids=["503", "silent", "403", "gone"],
)
def test_a_bucket_that_stays_away_ends_a_run_in_one_line(
    bucket, tmp_path, monkeypatch, capsys, fault, code, words
):
    monkeypatch.setattr(paths, "PATIENCE", 2.0)
    few = {"max_retries": 2, "initial_delay": "1s", "max_delay": "1s"}
    monkeypatch.setattr(checkpoint, "RETRIES", few)

    def strike():
        for name, value in fault.items():
            setattr(bucket.faults, name, value)

    found = train_struck(bucket.url, tmp_path, strike, monkeypatch)
    said = capsys.readouterr().err.strip()
    assert found == code, said
    assert said.startswith("videomae: ") and "\n" not in said and re.search(words, said), said
    for name in fault:
        setattr(bucket.faults, name, 0)
    assert saved(bucket.url) == [4]
    load_params(bucket.url)  # compares the digests


@pytest.mark.slow
def test_two_processes_share_a_bucket(bucket, straight):
    reference, more = straight
    more = [*more, f"--config.steps={STEPS}"]
    with start(bucket, straight, *more, count=2) as running:
        assert codes(running) == [0, 0], said(bucket, straight) + said(bucket, straight, 1)
    for step, (loss, _) in losses(reference).items():
        ours = float.fromhex(losses(bucket.url)[step][0])
        np.testing.assert_allclose(ours, float.fromhex(loss), rtol=1e-6)
    load_params(bucket.url)
