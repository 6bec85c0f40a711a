"""Scoring of nearest neighbours while training."""

import json

import jax
import numpy as np
import pytest
from runs import KINDS, SMALL, fails, held_out, rows

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.videos import Videos
from videomae_jax.tasks import pretrain
from videomae_jax.training.checkpoint import load_params


@pytest.fixture
def lists(labelled):
    return [text.partition("=")[2] for text in labelled]


def pretraining(workdir, *more):
    return ["train", f"--workdir={workdir}", *SMALL, "--config.steps=4", *map(str, more)]


@pytest.mark.slow
def test_a_run_logs_the_accuracy_that_the_command_measures(
    lists,
    labelled,
    tmp_path,
    capsys,
):
    knn_options = ["--config.knn.k=3", "--config.knn.videos=6"]
    average = ["--config.ema_decay=0.5", "--config.eval_every=2"]
    cli.main(pretraining(tmp_path / "run", *labelled, *knn_options, *average))
    assert "  knn_top1 " in capsys.readouterr().out
    first, last = held_out(tmp_path / "run")
    assert {"eval/knn_top1", "eval/ema_knn_top1"} <= set(first) and first["step"] == 2
    # Every second of the twelve, as the run takes them.
    thin = tmp_path / "thin.csv"
    kept = open(lists[0]).read().splitlines()[::2]
    thin.write_text("\n".join(kept))
    for name, flags in (("knn_top1", []), ("ema_knn_top1", ["--ema"])):
        file = tmp_path / f"{name}.json"
        data = ["--train", thin, "--eval", lists[1], "--k", 3, "--json", file, *flags]
        cli.main(list(map(str, ["knn", "--checkpoint", tmp_path / "run", *data])))
        assert json.loads(file.read_text())["top1"]["3"]["value"] == last[f"eval/{name}"]


@pytest.mark.slow
def test_scoring_neighbours_does_not_change_the_training(labelled, tmp_path):
    folders = [tmp_path / "with", tmp_path / "without"]
    for folder, k in zip(folders, (3, 0), strict=True):
        cli.main(pretraining(folder, *labelled, f"--config.knn.k={k}"))
    ours, theirs = (load_params(str(folder))[0] for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    (with_knn,), (without,) = map(held_out, folders)
    assert with_knn.pop("eval/knn_top1") is not None and with_knn == without


def test_a_run_without_labels_or_with_too_few_videos_says_so(
    lists,
    labelled,
    tmp_path,
    capsys,
):
    k = "--config.knn.k=3"
    none = tmp_path / "none.csv"
    none.write_text(rows("train", KINDS, range(2), label=lambda _: ""))
    said = fails(capsys, *pretraining(tmp_path, f"--config.data.train={none}", labelled[1], k))
    assert "knn.k is 3" in said and "has no labels" in said and "--config.knn.k=0" in said
    said = fails(capsys, *pretraining(tmp_path, *labelled, "--config.knn.k=13"))
    assert "k 13: there are 12 labelled training videos" in said
    nothing = ["--config.data.eval=", "--config.data.holdout=0"]
    said = fails(capsys, *pretraining(tmp_path, labelled[0], *nothing, k))
    assert "no videos are held out" in said


def test_labels_of_both_lists_are_numbered_alike():
    config = load_config("pretrain:tiny,custom", ["--config.knn.k=1"])
    train = Videos(("a", "b"), np.array([0, 1], np.int32), ("jump", "walk"), "train")
    held = Videos(("c",), np.array([0], np.int32), ("walk",), "held")
    _, train, held = pretrain.prepare(config, train, held)
    assert (train.labels.tolist(), held.labels.tolist()) == ([0, 1], [1])
