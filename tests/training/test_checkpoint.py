"""Checkpoints: damaged ones are known and passed over, and no kill leaves half of one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from runs import environment

from videomae_jax.devices.sharding import make_mesh
from videomae_jax.errors import UserError
from videomae_jax.training.checkpoint import Checkpoints, digests, load_params
from videomae_jax.training.step import TrainState

CONFIG = ConfigDict({"name": "test"}).lock()


def state(step, *, side=64):
    """A state whose every number tells its step, but is no constant."""
    numbers = jnp.arange(side * side, dtype=jnp.float32).reshape(side, side) + step
    return TrainState(
        step=jnp.int32(step),
        params={"encoder": {"kernel": numbers, "bias": jnp.full([side], float(step))}},
        opt_state={"mu": numbers / 2},
        skipped=jnp.int32(0),
    )


def abstract(**how):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state(0, **how)
    )


def restore(workdir, **how):
    checkpoints = Checkpoints(str(workdir), keep=3)
    try:
        return checkpoints.restore(abstract(**how), check=lambda config: None)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two_steps")
    checkpoints = Checkpoints(str(workdir), keep=3)
    for step in (3, 6):
        checkpoints.save(step, state(step), CONFIG)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def data_file(step):
    """The largest file of a checkpoint: its arrays."""
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(step):
    path = data_file(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def truncate(step):
    os.truncate(data_file(step), data_file(step).stat().st_size // 2)


def delete(step):
    data_file(step).unlink()


def forge(step):
    """As if orbax had read other numbers than were saved, and said nothing."""
    (path,) = (p for p in (step / "meta").rglob("*") if p.name == "metadata")
    tree = json.loads(path.read_text())
    tree["digests"]["rest/opt_state/mu"] += 1
    path.write_text(json.dumps(tree))


def cut_meta(step):
    (path,) = (p for p in (step / "meta").rglob("*") if p.name == "metadata")
    path.write_text(path.read_text()[:20])


def test_the_newest_whole_checkpoint_is_read(workdir):
    step, restored, config = restore(workdir)
    assert step == 6 and config.name == "test"
    jax.tree.map(np.testing.assert_array_equal, restored, state(6))


@pytest.mark.parametrize("damage", [flip, truncate, delete, cut_meta, forge])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(workdir, damage, capsys):
    damage(workdir / "checkpoints/6")
    step, restored, _ = restore(workdir)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    said = capsys.readouterr().out
    assert "checkpoint 6 is damaged" in said and said.count("\n") == 1
    # Out of the way, so that step 6 can be saved again, but still there.
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "6.damaged"]
    checkpoints = Checkpoints(str(workdir), keep=3)
    checkpoints.save(6, state(6), CONFIG)
    checkpoints.close()
    assert restore(workdir).step == 6


def test_where_all_are_damaged_the_run_ends_and_nothing_is_touched(workdir):
    truncate(workdir / "checkpoints/6")
    flip(workdir / "checkpoints/3")
    with pytest.raises(UserError, match="no checkpoint of .* can be read: step 6, .*; step 3, "):
        restore(workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "6"]


@pytest.mark.parametrize("damage", [flip, truncate, delete, cut_meta])
def test_damaged_weights_are_refused_for_use(workdir, damage):
    assert load_params(str(workdir))[1].name == "test"
    damage(workdir / "checkpoints/6")
    with pytest.raises(UserError, match=r"6 is damaged: .*; give an older one, such as .*/3$"):
        load_params(str(workdir))
    assert load_params(str(workdir / "checkpoints/3"))[1].name == "test"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_digests_on_the_host_are_those_on_a_device(dtype):
    # More values than are hashed at once, in an order that is not that of the memory.
    values = np.arange(3 * 50_000).reshape(3, 50_000)[::-1].astype(dtype)
    tree = {"a": values, "b": {"c": values[0, :7].reshape(7, 1), "d": np.ones([], dtype)}}
    assert digests(tree) == digests(jax.tree.map(jnp.asarray, tree))
    assert list(digests(tree)) == ["a", "b/c", "b/d"]


def test_digests_are_those_of_any_mesh_and_see_every_change():
    values = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    whole = digests({"kernel": values})
    for data, fsdp in ((1, 8), (8, 1), (2, 4)):
        mesh = make_mesh(dict(data=data, fsdp=fsdp, tensor=1))
        for spec in (P("fsdp", "data"), P(None, "fsdp"), P()):
            split = jax.device_put(values, NamedSharding(mesh, spec))
            assert digests({"kernel": split}) == whole
    swapped = values.copy()
    swapped[3, [4, 5]] = values[3, [5, 4]]
    flipped = values.copy()
    flipped.view(np.uint32)[0, 0] ^= 1
    zero, negative = np.zeros(3, np.float32), np.array([0, -0.0, 0], np.float32)
    assert digests({"kernel": swapped}) != whole != digests({"kernel": flipped})
    assert digests({"x": zero}) != digests({"x": negative})


SAVES = """
import itertools, sys
from test_checkpoint import CONFIG, Checkpoints, state
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in itertools.count(int(sys.argv[2])):
    checkpoints.save(step, state(step, side=1000), CONFIG)
"""


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_during_a_save_never_leaves_half_a_checkpoint(tmp_path, times):
    folder, newest, struck = tmp_path / "checkpoints", 0, 0
    for attempt in range(3 * times):
        if struck == times:
            break
        command = [sys.executable, "-c", SAVES, str(tmp_path), str(newest + 1)]
        process = subprocess.Popen(command, env=environment(__file__))
        try:
            deadline = time.monotonic() + 120
            # Each time a little later in the save, which begins with a temporary folder.
            while not (
                (folder / str(newest + 1)).is_dir()
                and any(not p.name.isdigit() for p in folder.iterdir())
            ):
                assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.003 * attempt)
            process.send_signal(signal.SIGSTOP)
            halfway = [p.name for p in folder.iterdir() if not p.name.isdigit()]
        finally:
            process.kill()
            process.wait()
        step, restored, _ = restore(tmp_path, side=1000)
        assert step > newest
        jax.tree.map(np.testing.assert_array_equal, restored, state(step, side=1000))
        assert all(p.name.isdigit() for p in folder.iterdir()), halfway
        newest, struck = step, struck + bool(halfway)
    assert struck == times  # a temporary folder stood there
