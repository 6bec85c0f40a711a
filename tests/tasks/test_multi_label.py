"""Several labels a video: the loss, training, evaluation and prediction, on 1 or 8 devices."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import fails, held_out, losses
from videos import write_attributes

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.augment.clip import mix_clips, smooth_targets
from videomae_jax.config import differences, load_config
from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.data.videos import Videos
from videomae_jax.devices.sharding import batch_sharding, make_mesh
from videomae_jax.diagnostics import plan
from videomae_jax.diagnostics.topology import find_devices
from videomae_jax.errors import UserError
from videomae_jax.tasks import classify
from videomae_jax.training.checkpoint import config_from_json, load_params
from videomae_jax.training.optim import Schedule, warmup_cosine
from videomae_jax.training.step import jit_steps
from videomae_jax.training.workdir import check_same_model

NAMES = ("moving", "red")
TINY = [
    "--config=finetune:tiny,custom",
    "--config.clip.frames=4",
    "--config.clip.stride=1",
    *(f"--config.clip.{side}=16" for side in ("height", "width", "source_height", "source_width")),
    "--config.model.encoder.depth=1",
    "--config.augment.operations=0",
    "--config.augment.min_area=0.8",
    "--config.batch_size=16",
    "--config.lr=3e-3",
    "--config.base_lr=0",
    "--config.warmup_steps=2",
    "--config.log_every=1",
]
UNMIXED = [f"--config.augment.{name}=0" for name in ("mixup", "cutmix", "erase")]


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Lists of 32 and 16 videos, each with both, one or none of two labels."""
    folders = (tmp_path_factory.mktemp(name) for name in ("train", "val"))
    return [
        write_attributes(folder, count) for folder, count in zip(folders, (32, 16), strict=True)
    ]


def arguments(workdir, lists, *more, steps=30):
    train, val = lists
    data = [f"--config.data.train={train}", f"--config.data.eval={val}"]
    return ["train", f"--workdir={workdir}", *TINY, *data, f"--config.steps={steps}", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lists):
    """A work directory of 30 steps, with a checkpoint of step 20."""
    workdir = tmp_path_factory.mktemp("several")
    cli.main(arguments(workdir, lists, *UNMIXED, "--config.save_every=20"))
    return workdir


# Computed by torch 2.14.1, BCEWithLogitsLoss: the mean over the classes of each row, and the
# gradient of the mean over all. "mixed": mixed with the row from below at a fraction of 0.7, then
# smoothed by 0.1, spread over the classes as timm 1.0 does.
LOGITS = [
    [0.0, 0.9, -0.82, -2.67, -1.36],
    [-2.97, 0.18, 4.02, -1.48, -1.86],
    [1.47, 1.07, 0.32, -2.79, -0.09],
    [2.09, -4.03, -1.37, -5.7, -3.87],
]
LABELS = [[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]]
TORCH = {
    "plain": (
        [1.144932, 1.044958, 0.923305, 1.930928],
        [
            [-0.025, -0.014453, 0.015288, -0.046762, -0.039788],
            [0.00244, 0.027244, 0.049118, 0.009271, 0.006735],
            [0.040653, 0.03723, 0.028966, 0.002893, 0.023876],
            [-0.005504, -0.049127, -0.039869, 0.000167, -0.048978],
        ],
    ),
    "mixed": (
        [0.998232, 1.053398, 0.923385, 2.072668],
        [
            [-0.021, -0.010453, 0.000788, -0.029262, -0.035788],
            [0.00144, 0.026244, 0.048118, 0.008271, 0.005735],
            [0.039653, 0.03623, 0.027966, 0.001893, 0.022876],
            [-0.001504, -0.045127, -0.022369, -0.014333, -0.044978],
        ],
    ),
}


@pytest.mark.parametrize("kind", TORCH)
def test_loss_and_gradient_are_those_of_torch(kind):
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS, bool)
    targets = smooth_targets(labels, classes=5, smoothing=0.0 if kind == "plain" else 0.1)
    if kind == "mixed":
        targets = 0.7 * targets + 0.3 * targets[::-1]
    rows, gradient = TORCH[kind]

    def loss(logits):
        sums = jax.tree.map(jnp.sum, classify.multi_label_sums(logits, targets, labels))
        return classify.summarize_multi_label(sums)["loss"]

    found = classify.multi_label_sums(logits, targets, labels)
    np.testing.assert_allclose(found["error"], rows, atol=2e-6)
    np.testing.assert_allclose(jax.grad(loss)(logits), gradient, atol=2e-6)


def test_a_hit_is_a_highest_logit_that_is_a_label():
    labels = jnp.asarray([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    logits = jnp.asarray([[0.1, 2.0, 1.0], [0.5, 0.5, 0.1], [1.0, 2.0, 3.0], [np.nan, 0.0, 0.0]])
    sums = classify.multi_label_sums(logits, labels.astype(jnp.float32), labels)
    assert sums["hit"].tolist() == [1, 0, 0, 0]
    assert sums["labelled"].tolist() == [1, 1, 0, 1]
    found = classify.summarize_multi_label(jax.tree.map(jnp.sum, sums))
    assert float(found["hit"]) == pytest.approx(1 / 3)
    none = {"error": 2.0, "hit": 0.0, "labelled": 0.0, "count": 2.0}
    assert classify.summarize_multi_label(none) == {"loss": 1.0, "hit": 0.0}


def test_mixed_clips_have_the_labels_of_both_by_their_fractions():
    labels = jnp.asarray(LABELS, bool)
    video = jnp.asarray(255.0 * labels[:, 3:4, None, None, None] * jnp.ones([4, 2, 8, 8, 1]))
    mixed, targets = mix_clips(
        jax.random.key(1),
        video,
        smooth_targets(labels, classes=5, smoothing=0.0),
        jnp.arange(4),
        group=4,
        mixup=0.8,
        cutmix=0.0,
        switch=0.0,
    )
    fraction = float(targets[0, 3])  # a label of the first clip and not of the last
    own, other = np.array(LABELS, float), np.array(LABELS[::-1], float)
    np.testing.assert_allclose(targets, fraction * own + (1 - fraction) * other, atol=1e-6)
    # Label 3 of each clip is also its pixels.
    np.testing.assert_allclose(mixed[:, 0, 0, 0, 0] / 255, targets[:, 3], atol=1e-6)
    assert 0 < fraction < 1


@pytest.mark.slow
def test_the_score_rises_above_chance_and_the_kind_stays_with_the_run(trained, lists, capsys):
    params, config = load_params(str(trained))
    assert config.model.multi_label is True and config.model.classes == 2
    assert config.data.class_names == NAMES and params["head"]["bias"].shape == (2,)
    row = held_out(trained)[-1]
    assert row["eval/map"] > 0.75  # the mean of random scores is 0.5
    assert row["eval/hit"] > 0.75 and row["eval/loss"] < np.log(2)
    with open(trained / "classes.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["0", "moving", "16", "8"], ["1", "red", "16", "8"]]
    # Nothing is left to train; the note is that of the start.
    cli.main(arguments(trained, lists, *UNMIXED))
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(trained, lists, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (trained / "checkpoints/20").rename(tmp_path / "checkpoints/20")
    cli.main(arguments(tmp_path, lists, *UNMIXED))
    said = capsys.readouterr().out
    assert "8 of 32 videos have several labels and 8 none: sigmoid loss, scored by mAP" in said
    assert losses(tmp_path) == {s: v for s, v in losses(trained).items() if s > 20}
    assert held_out(tmp_path) == held_out(trained)[-1:]


@pytest.mark.slow
def test_evaluation_gives_the_score_of_training_and_takes_lists_of_one_label(
    trained, lists, tmp_path, capsys
):
    file, out = tmp_path / "result.json", tmp_path / "out"
    command = ["evaluate", "--checkpoint", str(trained), "--manifest", lists[1], "--views=1x1"]
    cli.main([*command, "--json", str(file), "--out", str(out)])
    said, result = capsys.readouterr().out, json.loads(file.read_text())
    row = held_out(trained)[-1]
    assert result["map"] == pytest.approx(row["eval/map"])
    assert result["hit"]["value"] == pytest.approx(row["eval/hit"])
    assert result["hit"]["count"] == 12  # four videos have no label
    assert "sigmoid mean, 16 of 16 videos, AP not interpolated, mean of 2 of 2 classes" in said
    assert [(row["name"], row["count"]) for row in result["classes"]] == [
        ("moving", 8),
        ("red", 8),
    ]
    mean = np.mean([row["average_precision"] for row in result["classes"]])
    assert result["map"] == pytest.approx(mean) and f"mAP {mean:.1%}" in said
    assert {path.name for path in out.iterdir()} == {"scores"}  # no confusion of several labels

    single = tmp_path / "single.csv"
    lines = open(lists[1]).read().splitlines()
    folder = lists[1].rpartition("/")[0]
    single.write_text("\n".join(f"{folder}/{line}" for line in lines if "|" not in line))
    found = vm.evaluate(str(trained), str(single), views="1x1")
    assert [score.videos for score in found.classes] == [4, 4] and found.probabilities.shape[0] == 8
    # A list in which one class has no video.
    single.write_text("\n".join(f"{folder}/{line}" for line in lines if line.endswith(",red")))
    found = vm.evaluate(str(trained), str(single), views="1x1")
    assert found.classes[0].precision is None and found.map == found.classes[1].precision == 1
    assert "mean of 1 of 2 classes" in found.protocol


@pytest.mark.slow
def test_each_class_is_predicted_by_itself(trained, lists, tmp_path, capsys):
    folder = lists[1].rpartition("/")[0]
    clips = [f"{folder}/{index}.mp4" for index in range(4)]
    file = tmp_path / "result.json"
    cli.main(["predict", *clips, "--checkpoint", str(trained), "--json", str(file)])
    said, results = capsys.readouterr().out, json.loads(file.read_text())
    assert "several labels a video: each probability is that of one class" in said
    every = vm.predict(str(trained), clips[3], top=2)[0]
    model = vm.load(str(trained))
    window = model.read_clip(clips[3], start=0)
    sigmoids = jax.nn.sigmoid(model.logits(window))[0]
    found = {likely.name: likely.probability for likely in every.windows[0].top}
    np.testing.assert_allclose([found[name] for name in NAMES], sigmoids, rtol=1e-4)
    for result in results:
        assert result["multi_label"]
        assert all(row["probability"] > 0.5 for row in result["top"])
    likely = [row for row in every.top if row.probability > 0.5]
    assert [row["name"] for row in results[3]["top"]] == [row.name for row in likely]
    assert ("no class above 50%" in said) == any(not result["top"] for result in results)
    assert "use 1 to 2" in fails(capsys, "predict", clips[0], "--checkpoint", trained, "--top", 3)


@pytest.mark.parametrize("form", ["hf", "stablehlo"])
@pytest.mark.slow
def test_other_formats_say_the_kind(trained, lists, tmp_path, form):
    model = vm.load(str(trained))
    model.save(str(tmp_path / "made"), format=form)
    if form == "stablehlo":
        signature = json.loads((tmp_path / "made/model.json").read_text())
        assert signature["probabilities"] == "sigmoid"
        return
    config = json.loads((tmp_path / "made/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    again = vm.load(str(tmp_path / "made"))
    assert again.config.model.multi_label and again.labels == NAMES


@pytest.mark.slow
def test_a_format_without_the_kind_says_so(trained, tmp_path, capsys):
    cli.main(["convert", str(trained), str(tmp_path / "model.pth")])
    assert "does not say that the model knows several labels" in capsys.readouterr().out


def test_neighbours_and_models_of_one_label_name_what_works(lists, classifier, capsys):
    folder, *_ = classifier
    train, val = lists
    said = fails(capsys, "knn", "--checkpoint", folder, "--train", train, "--eval", val)
    assert "16 of 32 videos of" in said and "use a probe" in said
    knn = ["--config=demo", f"--config.data.train={train}", "--config.knn.k=1"]
    said = fails(capsys, "train", "--workdir=never", *knn, f"--config.data.eval={val}")
    assert "use --config.knn.k=0 and train a probe" in said


@pytest.mark.slow
def test_a_plan_has_the_labels_of_such_a_batch():
    overrides = [*TINY[1:], "--config.model.multi_label=True", "--config.model.classes=7"]
    config, videos = plan.prepare_config(
        load_config("finetune:tiny,custom", overrides), classify, examples=16
    )
    devices, hosts = find_devices("here")
    plan.plan_step(config, classify, devices=devices, hosts=hosts, examples=len(videos))
    assert videos.labels.shape == (16, 7)


def several(rows, names=None, name="list"):
    return Videos(tuple(map(str, range(len(rows)))), np.array(rows, bool), names, name)


def single(labels, names=None, name="list"):
    return Videos(tuple(map(str, range(len(labels)))), np.array(labels, np.int32), names, name)


def prepare(train, held_out=None, *overrides):
    return classify.prepare(load_config("finetune:tiny,custom", overrides), train, held_out)


def test_one_list_of_several_labels_decides_for_both():
    rows = [[1, 1, 0], [0, 0, 1]]
    config, train, held = prepare(several(rows), single([2, 0, 1]))
    assert config.model.multi_label and config.model.classes == 3
    assert held.labels.tolist() == np.eye(3, dtype=bool)[[2, 0, 1]].tolist()
    assert train.labels.dtype == held.labels.dtype == bool
    assert "1 of 2 videos have several labels and 0 none" in train.notes[-1]
    config, train, held = prepare(single([2, 0, 1]), several(rows))
    assert config.model.multi_label and train.labels.sum() == 3 and held.labels.sum() == 3
    # Names are numbered as in training; a list without some of them has fewer columns.
    train = several(rows, ("a", "b", "c"))
    _, _, held = prepare(train, several([[1, 1]], ("b", "c")))
    assert held.labels.tolist() == [[False, True, True]]
    _, _, held = prepare(train, single([0], ("c",)))
    assert held.labels.tolist() == [[False, False, True]]


def test_a_list_of_one_label_can_be_trained_as_one_of_several():
    config, train, _ = prepare(single([0, 1, 1]), None, "--config.model.multi_label=True")
    assert config.model.multi_label and train.labels.shape == (3, 2)
    config, train, _ = prepare(single([0, 1, 1]))
    assert not config.model.multi_label and train.labels.dtype == np.int32
    # One class is enough where a video may have none.
    config, _, _ = prepare(several([[1], [0]]))
    classify.check_classes(config.model)
    with pytest.raises(UserError, match="labels of 1 or more"):
        classify.check_classes(prepare(several([[], []]))[0].model)


def test_labels_that_cannot_be_learned_are_refused():
    train = several([[1, 1, 0], [0, 1, 0]], ("a", "b", "c"), "train")
    with pytest.raises(UserError, match="1 of 2 held-out videos of val .* first c: leave"):
        prepare(train, several([[1, 0], [0, 1]], ("b", "c"), "val"))
    with pytest.raises(UserError, match="has label 2, model.classes is 2: use .*classes=3"):
        prepare(several([[1, 0, 1]]), None, "--config.model.classes=2")
    with pytest.raises(UserError, match="did you mean 'b'"):
        prepare(train, several([[1, 1]], ("b", "bb"), "val"))


def test_a_config_of_an_older_run_is_of_one_label_and_its_run_goes_on():
    for recipe in ("finetune:tiny,custom", "probe:linear,tiny,custom"):
        config = load_config(recipe, ["--config.model.classes=3"])
        old = json.loads(config.to_json())
        del old["model"]["multi_label"]
        again = config_from_json(old)
        assert again.model.multi_label is False and not differences(again, config)
        check_same_model(differences(again, config), workdir="run")
        other = load_config(recipe, ["--config.model.classes=3", "--config.model.multi_label=True"])
        with pytest.raises(UserError, match="model.multi_label=False, the config says True"):
            check_same_model(differences(again, other), workdir="run")


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    overrides = [*TINY[1:], "--config.model.classes=3", "--config.model.multi_label=True"]
    config = load_config("finetune:tiny,custom", overrides)
    task = classify.build_task(config)
    (batch,) = synthetic_batches(shape=(4, 16, 16, 3), batch_size=32, seed=0, num_steps=1)
    labels = np.random.default_rng(0).random((32, 3)) < 0.4
    size = np.full((32, 2), 16, np.int32)
    batch |= {"label": labels, "size": size, "valid": np.arange(32) < 27}
    videos = several(labels)

    def run(devices):
        mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
        schedule = warmup_cosine(Schedule(100, 2, 1e-3, 1e-5))
        with jax.set_mesh(mesh):
            functions = jit_steps(task, optax.sgd(1.0), schedule, mesh, seed=0, accumulation=1)
            put = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh)), batch)
            valid = put.pop("valid")
            state, metrics = functions.train(functions.init(), put)
            sums, rows = functions.evaluate(state.params, put | {"valid": valid})
        ids = np.flatnonzero(rows.kept)
        scores = task.score(videos, ids, np.asarray(rows.values)[ids])
        scores |= task.summarize(jax.device_get(sums))
        return state.params, {"train": metrics["loss"], **scores}

    one, eight = run(1), run(8)
    assert one[1]["map"] == eight[1]["map"]
    np.testing.assert_allclose(
        *([float(found[key]) for key in one[1]] for _, found in (one, eight)), rtol=1e-5
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one[0], eight[0])
