"""Nearest neighbours: against a plain reference, from the command line, and while training."""

import json

import jax
import numpy as np
import pytest
from runs import KINDS, SMALL, fails, held_out, rows

from videomae_jax import cli, metrics
from videomae_jax.config import load_config
from videomae_jax.data.videos import Videos, thin_videos
from videomae_jax.errors import UserError
from videomae_jax.metrics import top
from videomae_jax.tasks import pretrain
from videomae_jax.training.checkpoint import load_params


def reference(bank, labels, queries, *, k, temperature):
    """One query and one neighbour at a time, in float64."""

    def unit(x):
        return x / np.linalg.norm(x)

    shares = np.zeros((len(queries), labels.max() + 1))
    for row, query in zip(shares, queries, strict=True):
        similar = [float(unit(query) @ unit(other)) for other in bank]
        for index in sorted(range(len(bank)), key=lambda i: (-similar[i], i))[:k]:
            row[labels[index]] += np.exp(similar[index] / temperature)
        row /= row.sum()
    return shares


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_those_of_the_definition(temperature, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 7)  # more than one, and a partial last one
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(40, 6)), rng.normal(size=(17, 6)) * 100
    labels = rng.integers(0, 5, 40).astype(np.int32)
    votes = metrics.neighbour_votes(bank, labels, queries, ks=(1, 3, 40), temperature=temperature)
    for k in (1, 3, 40):
        expected = reference(bank, labels, queries, k=k, temperature=temperature)
        np.testing.assert_allclose(votes[k], expected, atol=1e-5)


def test_of_equally_near_the_first_votes_and_of_equal_votes_the_first_class_wins():
    bank = np.eye(3)[[0, 0, 1, 2]]
    labels = np.array([2, 1, 0, 1], np.int32)
    votes = metrics.neighbour_votes(bank, labels, np.eye(3)[[0]], ks=(1, 2))
    np.testing.assert_allclose(votes[1], [[0, 0, 1]])
    np.testing.assert_allclose(votes[2], [[0, 0.5, 0.5]])
    assert top(votes[2], np.array([1]), k=1).value == 1


def test_the_videos_themselves_are_their_own_nearest_neighbours():
    features = np.random.default_rng(1).normal(size=(50, 8))
    labels = np.arange(50, dtype=np.int32) % 7
    votes = metrics.neighbour_votes(features, labels, features, ks=(1,))
    assert top(votes[1], labels, k=1).value == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(ks=(1, 6)), "k 6: there are 5 labelled training videos .* use 1 to 5"),
        (dict(ks=(0,)), "k 0"),
        (dict(ks=(1,), temperature=0.0), "temperature 0: use above 0"),
    ],
)
def test_impossible_neighbours_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        metrics.neighbour_votes(np.eye(5), np.zeros(5, np.int32), np.eye(5), **options)


def test_thinned_videos_are_evenly_spaced():
    videos = Videos(tuple("abcdefghij"), np.arange(10, dtype=np.int32), None, "list")
    assert thin_videos(videos, most=4).paths == ("a", "d", "g", "j")
    assert thin_videos(videos, most=4).labels.tolist() == [0, 3, 6, 9]
    assert len(thin_videos(videos, most=10)) == len(thin_videos(videos, most=99)) == 10


@pytest.fixture
def lists(labelled):
    return [text.partition("=")[2] for text in labelled]


def test_the_command_reports_every_k_and_what_could_not_be_read(
    pretrained,
    lists,
    tmp_path,
    capsys,
):
    train, _ = lists
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")
    (tmp_path / "some.csv").write_text(rows("train", KINDS, range(4)) + f"\n{bad} walk")
    file = tmp_path / "result.json"
    command = ["knn", "--checkpoint", pretrained, "--train", train, "--eval", tmp_path / "some.csv"]
    cli.main([*map(str, command), "--k", "1", "12", "--json", str(file)])
    said = capsys.readouterr().out
    result = json.loads(file.read_text())
    # The training clips again, so the nearest of each is itself.
    assert "k 1    top-1 100.0 %" in said
    assert result["top1"]["1"] == dict(
        value=1, low=pytest.approx(0.7575, abs=1e-4), high=1, count=12
    )
    assert set(result["top1"]) == {"1", "12"} and result["top1"]["12"]["value"] < 1
    assert "12 of 13 videos against 12 of 12" in said and "1 of 13 videos unreadable" in said
    assert list(result["unreadable"]) == [str(bad)]
    # Other weights, other neighbours.
    cli.main([*map(str, command), "--k", "12", "--untrained", "--json", str(file)])
    assert "untrained weights" in capsys.readouterr().out
    assert result["top1"]["12"]["count"] == json.loads(file.read_text())["top1"]["12"]["count"]


def test_mistakes_are_one_line(pretrained, lists, tmp_path, capsys):
    train, held = lists
    command = ["knn", "--checkpoint", pretrained, "--train", train, "--eval"]
    assert "use 1 to 12" in fails(capsys, *command, held, "--k", 13)
    assert "batch 3 is not divisible by 8 devices: use 8" in fails(
        capsys, *command, held, "--k", 1, "--batch-size", 3
    )
    other = tmp_path / "other.csv"
    other.write_text(rows("val", KINDS, [0], label=lambda _: ""))
    assert "has no labels" in fails(capsys, *command, other, "--k", 1)
    other.write_text(rows("val", ("run",), [0]))
    assert "first 'run'" in fails(capsys, *command, other, "--k", 1)
    (tmp_path / "bad.mp4").write_text("")
    other.write_text("bad.mp4 walk")
    assert "1 of 1 videos unreadable" in fails(capsys, *command, other, "--k", 1)


def pretraining(workdir, *more):
    return ["train", f"--workdir={workdir}", *SMALL, "--config.steps=4", *map(str, more)]


def test_a_run_tells_the_accuracy_that_the_command_measures(
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
def test_scoring_neighbours_changes_nothing_of_the_training(
    pretrained,
    labelled,
    tmp_path,
):
    cli.main(pretraining(tmp_path, *labelled, "--config.knn.k=3", "--config.steps=3"))
    ours, theirs = (load_params(str(path))[0] for path in (tmp_path, pretrained))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    (with_knn,), (without,) = held_out(tmp_path), held_out(pretrained)
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
