"""`videomae evaluate` of a detector: the mAP of its training, other boxes, resuming, mistakes."""

import csv
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from runs import ROOT, fails, held_out, stop_midway
from videos import write_video

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.detection_metrics import Boxes, mean_average_precision
from videomae_jax.errors import UserError
from videomae_jax.inference import box_probabilities, evaluate_boxes
from videomae_jax.inference.engine import data_mesh

SCENES = ROOT / "data/mocap_scenes"
FILMS = ("150", "151", "152")
SMALL = [
    "--config=detect:tiny,custom",
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=32" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.batch_size=8",
    "--config.steps=4",
    "--config.warmup_steps=1",
    "--config.lr=3e-3",
    "--config.base_lr=0",
    "--config.eval_every=4",
    "--config.ema_decay=0.5",
]


def read_rows(name, films):
    with open(SCENES / name, newline="") as file:
        return [row for row in csv.reader(file) if row[0] in films]


def write_rows(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three films of the scenes and a wider one, their annotations and detected boxes."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "films").mkdir()
    for film in FILMS:
        shutil.copy(SCENES / f"val/{film}.mp4", folder / "films")
    write_video(folder / "films/wide.mp4", count=96, width=256, height=64)
    wide = [
        ["wide", "0001", "0.1", "0.2", "0.3", "0.9", "1", "1"],
        ["wide", "0001", "0.6", "0.2", "0.9", "0.9", "13", "2"],
        ["wide", "0002", "0.1", "0.2", "0.3", "0.9", "2", "1"],
    ]
    write_rows(folder / "val.csv", [*read_rows("val.csv", FILMS), *wide])
    found = [
        ["wide", "0001", "0.11", "0.2", "0.31", "0.9", "", "0.95"],
        ["wide", "0003", "0.5", "0.5", "0.7", "0.9", "", "0.85"],  # not annotated
    ]
    write_rows(folder / "found.csv", [*read_rows("val_detected.csv", FILMS), *found])
    write_rows(folder / "train.csv", read_rows("train.csv", ("000", "001", "002", "003")))
    for film in ("000", "001", "002", "003"):
        shutil.copy(SCENES / f"train/{film}.mp4", folder / "films")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A detector after four steps, and the metrics of its last evaluation."""
    data = {
        "train": folder / "train.csv",
        "eval": folder / "val.csv",
        "videos": folder / "films",
        "classes": SCENES / "classes.pbtxt",
    }
    flags = [f"--config.data.{name}={value}" for name, value in data.items()]
    cli.main(["train", f"--workdir={folder}/run", *SMALL, *flags])
    return folder / "run", held_out(folder / "run")[-1]


def command(folder, *more):
    given = ["--checkpoint", folder / "run", "--manifest", folder / "val.csv", *more]
    return [*map(str, ["evaluate", *given])]


def measure(folder, out, *more):
    """Evaluate, and return the JSON."""
    file = out.with_suffix(".json")
    cli.main(command(folder, "--out", out, "--json", file, *more))
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def annotated(run, folder):
    return measure(folder, folder / "annotated")


@pytest.fixture(scope="module")
def detected(run, folder):
    return measure(folder, folder / "detected", "--boxes", folder / "found.csv")


@pytest.mark.slow
def test_annotated_boxes_give_the_numbers_of_the_training(run, folder, annotated, capsys):
    """With clips of two shapes, a partial batch of each, and also for averaged weights."""
    _, training = run
    assert annotated["map"] == pytest.approx(training["eval/map"], abs=1e-9)
    assert annotated["loss"] == pytest.approx(training["eval/loss"], rel=1e-6)
    assert annotated["upper_bound"] and annotated["key_frames"] == 11
    averaged = measure(folder, folder / "averaged", "--ema")
    said = capsys.readouterr().out
    assert averaged["map"] == pytest.approx(training["eval/ema_map"], abs=1e-9)
    assert averaged["loss"] == pytest.approx(training["eval/ema_loss"], rel=1e-6)
    assert "(an upper bound: the annotated boxes were given)" in said
    for words in ("protocol published", "11 key frames", "annotated boxes, ranked by the score of"):
        assert words in said
    assert "\n\n" not in said
    assert "averaged weights" in said and "mean of 12 of 13 classes" in said  # nobody jumps
    assert vm.evaluate_detector(folder / "run", folder / "val.csv").map == annotated["map"]


@pytest.mark.slow
def test_each_kind_of_model_has_its_function(run, folder, classifier):
    with pytest.raises(UserError, match="run is a detector, .*: use vm.evaluate_detector"):
        vm.evaluate(folder / "run", folder / "val.csv")
    with pytest.raises(UserError, match="was trained to classify, it takes no boxes"):
        vm.evaluate_detector(classifier[0], folder / "val.csv")


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.slow
def test_the_files_hold_what_was_scored(folder, detected):
    """An evaluator that reads the files, as that of AVA does, finds the same mAP."""
    found, truth = read_csv(folder / "detected/detections.csv"), read_csv(folder / "val.csv")
    given = [row for row in read_csv(folder / "found.csv") if float(row[7]) >= 0.8]
    assert len(found) == 13 * len(given)
    # The boxes as they were given, although the model sees them extended.
    as_given, written = ({tuple(map(float, row[2:6])) for row in rows} for rows in (given, found))
    assert as_given == written
    keys = sorted({(row[0], row[1]) for row in (*found, *truth)})

    def boxes(rows, absent, value):
        values = np.full((len(rows), 13), absent)
        for row, cells in enumerate(rows):
            values[row, int(cells[6]) - 1] = value(cells)
        frames = np.array([keys.index((cells[0], cells[1])) for cells in rows])
        return Boxes(frames, np.array([cells[2:6] for cells in rows], float), values)

    again = mean_average_precision(
        boxes(truth, False, lambda cells: True),
        boxes(found, np.nan, lambda cells: float(cells[7])),
    )
    assert again.value == pytest.approx(detected["map"], abs=1e-4)
    header, *rows = read_csv(folder / "detected/classes.csv")
    assert header == ["id", "name", "ap", "annotated", "detected"]
    for row, score in zip(rows, detected["classes"], strict=True):
        counts = [score["annotated"], score["detected"]]
        assert row[:2] == [str(score["id"]), score["name"]] and [*map(int, row[3:])] == counts
        precision = score["average_precision"]
        assert row[2] == ("" if precision is None else f"{precision:.6f}")
        assert counts[1] == len(given)
    assert (folder / "detected/classes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_detected_boxes_are_ranked_by_both_scores(folder, detected, capsys):
    assert not detected["upper_bound"] and detected["loss"] is None
    assert detected["key_frames"] == 11
    assert (
        "11 key frames, boxes of found.csv with a score of 0.8 or more, ranked by the score of the "
        "action x that of the person" in detected["protocol"]
    )
    notes = "; ".join(detected["notes"])
    assert "1 key frames have boxes and no annotations: their detections are wrong" in notes
    # Another protocol ranks the same probabilities: nothing is computed again.
    boxes = ["--boxes", folder / "found.csv", "--protocol", "mmaction2"]
    other = measure(folder, folder / "detected", *boxes)
    assert "11 key frames were scored before" in capsys.readouterr().out
    assert "ranked by the score of the action, " in other["protocol"]
    assert "their detections do not count" in "; ".join(other["notes"])
    assert other["map"] != detected["map"]


@pytest.mark.slow
def test_a_stopped_evaluation_resumes_to_the_same_numbers(run, folder, tmp_path, annotated):
    for batches in (1, 2):  # of three, the last of another shape
        calls = iter(range(9))
        model, out = vm.load(folder / "run"), tmp_path / str(batches)
        stopped = evaluate_boxes.evaluate_files(
            model._network,
            model.params,
            model.config,
            str(folder / "val.csv"),
            source="run",
            out=out,
            stopped=lambda: next(calls) >= batches - 1,  # noqa: B023
        )
        assert stopped is None
        again = measure(folder, out)
        assert again == annotated
        scores = [np.load(f)["probabilities"] for f in sorted((out / "scores").glob("0*.npz"))]
        whole = np.load(next((folder / "annotated/scores").glob("0*.npz")))["probabilities"]
        assert len(scores) == 2
        np.testing.assert_array_equal(np.concatenate(scores), whole)


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_resumes(run, folder, tmp_path, annotated):
    out = tmp_path / "out"
    options = ["--out", out, "--batch-size=8"]
    stop_midway(command(folder, *options), out / "scores", files=1, number=signal.SIGTERM)
    assert measure(folder, out, "--batch-size=8") == annotated


@pytest.mark.slow
def test_one_device_computes_what_eight_do(run, folder, annotated, monkeypatch):
    for module in (box_probabilities, evaluate_boxes):
        monkeypatch.setattr(module, "data_mesh", lambda: data_mesh(jax.devices()[:1]))
    found = vm.evaluate_detector(folder / "run", folder / "val.csv", batch_size=3)
    assert found.loss == pytest.approx(annotated["loss"], rel=1e-5)
    assert found.scores.shape == (len(found.key_frames.boxes), 13)


@pytest.mark.slow
def test_classes_and_key_frames_may_be_left_out(run, folder, tmp_path, annotated):
    model, truth = folder / "run", folder / "val.csv"
    (tmp_path / "some.txt").write_text("kick\nlow\n")
    some = vm.evaluate_detector(model, truth, evaluated=tmp_path / "some.txt")
    own = {row["name"]: row["average_precision"] for row in annotated["classes"]}
    assert {score.name: score.precision for score in some.classes} == {
        k: own[k] for k in ("kick", "low")
    }
    assert some.map == pytest.approx((own["kick"] + own["low"]) / 2)
    (tmp_path / "out.csv").write_text("wide,0001\nwide,0002\n")
    rest = vm.evaluate_detector(model, truth, excluded=tmp_path / "out.csv")
    films = write_rows(tmp_path / "films.csv", read_rows("val.csv", FILMS))
    alone = vm.evaluate_detector(model, films, videos=folder / "films")
    assert rest.map == alone.map and "9 key frames" in rest.protocol


@pytest.mark.slow
def test_an_unreadable_video_does_not_count_and_is_said(run, folder, tmp_path, capsys):
    shutil.copytree(folder / "films", tmp_path / "films")
    (tmp_path / "films/wide.mp4").write_text("not a video")
    out = tmp_path / "out"
    broken = measure(folder, out, "--videos", tmp_path / "films")
    films = write_rows(tmp_path / "films.csv", read_rows("val.csv", FILMS))
    alone = vm.evaluate_detector(folder / "run", films, videos=folder / "films")
    assert broken["map"] == pytest.approx(alone.map) and broken["loss"] == pytest.approx(alone.loss)
    assert "2 of 11 annotated key frames do not count" in capsys.readouterr().out
    assert "wide.mp4" in (out / "unreadable.csv").read_text() and len(broken["unreadable"]) == 1


@pytest.mark.slow
def test_mistakes_are_one_line(run, folder, classifier, tmp_path, capsys):
    def says(*more):
        return fails(capsys, *command(folder, *more))

    assert "--views is for classifiers" in says("--views=2x1")
    assert "give these (--boxes)" in says("--min-score=.5")
    boxes = ["--boxes", folder / "found.csv"]
    assert "no box has a score of 1" in says(*boxes, "--min-score=1")
    assert "lowest person score of 2: use 0 to 1" in says(*boxes, "--min-score=2")
    others = write_rows(tmp_path / "others.csv", read_rows("val_detected.csv", ("160",)))
    assert "none of its 1 videos is in" in says("--boxes", others)
    (tmp_path / "wrong.txt").write_text("kik\n")
    wrong = says("--evaluated", tmp_path / "wrong.txt")
    assert "the model has no class 'kik'; did you mean 'kick'?" in wrong
    (tmp_path / "out.csv").write_text("wide,0001\n")
    out = ["--excluded", tmp_path / "out.csv", "--protocol=official"]
    assert "the official protocol has no list of excluded key frames" in says(*out)
    out = ["--out", folder / "annotated", *boxes]
    assert "holds results of" in says(*out)
    given = ["evaluate", "--checkpoint", classifier[0], "--manifest", folder / "val.csv"]
    assert "--boxes is for detectors" in fails(capsys, *given, *boxes)


def test_held_out_boxes_without_actions_are_said_before_the_training(folder, tmp_path, capsys):
    none = [[*row[:6], "", row[7]] for row in read_rows("val.csv", FILMS)]
    lists = [
        f"--config.data.train={folder}/train.csv",
        f"--config.data.eval={write_rows(tmp_path / 'none.csv', none)}",
        f"--config.data.videos={folder}/films",
        f"--config.data.classes={SCENES}/classes.pbtxt",
    ]
    said = fails(capsys, "train", f"--workdir={tmp_path}/run", *SMALL, *lists)
    assert "no held-out box of" in said and "among the 13 classes that are scored" in said
