"""A run can be read back whatever its folder is called, or does not begin."""

import os

import jax
import numpy as np
import pytest
from runs import SMALL, fails, losses

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.errors import UserError
from videomae_jax.training.checkpoint import Checkpoints, load_params
from videomae_jax.training.step import TrainState
from videomae_jax.training.workdir import make_workdir

# Patterns, escapes of addresses, what a shell expands, separators of orbax and tensorstore.
NAMES = [
    *("lr[1e-3]", "[!a]", "a*b?", "50%41", "x#1", "ä日本 'quote\" ", "new\nline"),
    *("~home", "$HOME{a,b}", "-dash", ".hidden", "a:b", "a|b|zarr", "a=b&c@d"),
]
REFUSED = {"hf://bucket/run": "is an address", "back\\slash": "has a backslash", "gs:/run": "'gs:'"}
REFUSED["\udce4"] = "is not UTF-8"


def state(step):
    leaf = {"kernel": jax.numpy.arange(64.0) + step}
    return TrainState(np.int32(step), leaf, {"mu": leaf}, np.int32(0))


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_read_back_under_every_name(tmp_path, name):
    make_workdir(str(tmp_path / name))
    config = load_config("demo")
    checkpoints = Checkpoints(str(tmp_path / name), keep=1)
    for step in (2, 3):
        checkpoints.save(step, jax.device_put(state(step)), config)
    checkpoints.wait()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        jax.device_put(state(0)),
    )
    checkpoints.verify(3, abstract)
    restored = checkpoints.restore(abstract, check=lambda config: None)
    assert restored.step == 3
    checkpoints.close()
    params, _ = load_params(str(tmp_path / name))
    np.testing.assert_array_equal(params["kernel"], np.arange(64.0) + 3)
    assert sorted(os.listdir(tmp_path / name / "checkpoints")) == ["3"]


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_names_that_cannot_work_are_refused_and_nothing_is_made(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=REFUSED[name]):
        make_workdir(name)
    assert not os.listdir(tmp_path)


def test_a_save_that_cannot_be_read_back_is_told(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    whole = jax.device_put(state(1))
    checkpoints.save(1, whole, load_config("demo"))
    checkpoints.wait()
    for file in (tmp_path / "checkpoints/1/params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), whole
    )
    with pytest.raises(UserError, match=r"checkpoints/1 cannot be read back: "):
        checkpoints.verify(1, abstract)
    checkpoints.close()


@pytest.mark.slow
def test_a_run_in_a_folder_named_like_a_pattern_resumes(tmp_path, labelled, capsys):
    workdir = tmp_path / "lr[1e-3]"
    command = ["train", f"--workdir={workdir}", *SMALL, *labelled, "--config.eval_every=100"]
    cli.main([*command, "--config.steps=3"])
    cli.main([*command, "--config.steps=4"])
    said = capsys.readouterr().out
    assert "done, 3 steps" in said and "done, 4 steps" in said
    assert list(losses(workdir)) == [1, 2, 3, 4]
    assert not (workdir / ".lock").exists()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, labelled, capsys):
    from videomae_jax.training.lock import lock_workdir

    with lock_workdir(str(tmp_path)):
        command = ["train", f"--workdir={tmp_path}", *SMALL, *labelled, "--config.steps=3"]
        assert "is in use by process" in fails(capsys, *command)
