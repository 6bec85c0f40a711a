"""The examples run on the demo's clips."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest
from runs import CLIPS, ROOT

from videomae_jax.training.workdir import read_metrics


def example(name):
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_features_finds_a_copy(pretrained, tmp_path, capsys):
    for name, source in (("a", "walk_000"), ("b", "walk_000"), ("c", "walk_001")):
        shutil.copy(CLIPS / f"val/walk/{source}.mp4", tmp_path / f"{name}.mp4")
    example("features").main(str(pretrained), str(tmp_path))
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["a.mp4", "b.mp4 1.00"]
    assert lines[1][:2] == ["b.mp4", "a.mp4 1.00"]


@pytest.mark.slow
def test_own_loop_learns():
    losses = example("finetune_in_your_loop").main(20)
    assert np.isfinite(losses).all()
    assert abs(losses[0] - np.log(12)) < 0.05  # the head starts near zero
    assert np.mean(losses[-5:]) < losses[0]


@pytest.mark.slow
def test_new_task_trains_and_evaluates(tmp_path):
    example("new_task").main(str(tmp_path), 5)
    rows = read_metrics(str(tmp_path))
    assert any("loss" in row for row in rows)
    assert any("eval_top1" in row or "eval/top1" in row for row in rows)
