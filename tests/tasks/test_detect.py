"""The detection task: every present box counts the same, whatever else is in the batch."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT, fails, held_out, losses

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.ava_classes import AVA_CLASSES
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.videos import Videos
from videomae_jax.devices.sharding import batch_sharding, make_mesh, state_sharding
from videomae_jax.errors import UserError
from videomae_jax.tasks import detect
from videomae_jax.tasks.build import open_key_frames
from videomae_jax.tasks.detection_scores import evaluated_labels
from videomae_jax.training.checkpoint import load_params
from videomae_jax.training.optim import make_optimizer
from videomae_jax.training.step import jit_steps, make_state

SCENES = Path(__file__).parent.parent.parent / "data/mocap_scenes"

CLASSES, SIDE, CLIPS = 5, 32, 8
SMALL = [
    "--config.clip.frames=4",
    *(f"--config.clip.{side}={SIDE}" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.model.encoder.width=32",
    "--config.model.encoder.mlp_width=64",
    f"--config.model.classes={CLASSES}",
    f"--config.batch_size={CLIPS}",
]
STILL = "--config.boxes.jitter=(0.,0.,0.,0.)"


def load(*more):
    return load_config("detect:tiny,custom", [*SMALL, *more])


def make_batch(*, most=8, seed=0):
    """Return a training batch of 8 clips with 1 to 5 boxes each, and room for `most`."""
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (CLIPS, 4, SIDE, SIDE, 3), dtype=np.uint8)
    present = np.arange(most) < rng.integers(1, 6, (CLIPS, 1))
    corners = np.sort(rng.uniform(0, SIDE, (CLIPS, 8, 2, 2)), axis=2).reshape(CLIPS, 8, 4)
    targets = rng.random((CLIPS, 8, CLASSES)) < 0.3
    boxes = np.tile(np.float32([0, 0, SIDE, SIDE]), (CLIPS, most, 1))
    target = np.zeros((CLIPS, most, CLASSES), bool)
    boxes[:, :8] = np.where(present[:, :8, None], corners, boxes[:, :8])
    target[:, :8] = targets & present[:, :8, None]
    rows = np.arange(CLIPS, dtype=np.int32)
    return {
        "video": video, "id": rows, "row": rows,
        "boxes": boxes, "present": present, "target": target,
    }  # fmt: skip


@functools.cache
def make(*more):
    """Return the task of a config, parameters with a head that sees, and its gradient."""
    task = detect.build_task(load(*more))
    params = task.init(jax.random.key(0))
    params["head"]["kernel"] = 1e4 * params["head"]["kernel"]

    @jax.jit
    def loss_and_grad(params, batch):
        def loss(params):
            sums = task.train_sums(params, batch, jax.random.key(1))
            return sums["error"], sums

        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return sums, grads

    return task, params, loss_and_grad


def assert_same(ours, theirs, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), ours, theirs)


@pytest.mark.slow
def test_an_untrained_model_starts_at_the_logarithm_of_two():
    task, *_ = make(STILL)
    params = task.init(jax.random.key(0))
    batch = make_batch()
    metrics = task.summarize(jax.jit(task.train_sums)(params, batch, jax.random.key(0)))
    assert list(metrics) == ["loss", "hit"]
    assert float(metrics["loss"]) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.slow
def test_padding_changes_neither_the_loss_nor_any_gradient():
    """With every augmentation on."""
    _, params, loss_and_grad = make()
    sums, grads = loss_and_grad(params, make_batch(most=8))
    assert float(sums["count"]) == make_batch()["present"].sum()
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-3
    padded = loss_and_grad(params, make_batch(most=32))
    assert_same(padded, (sums, grads))


@pytest.mark.slow
def test_what_absent_boxes_hold_changes_nothing():
    _, params, loss_and_grad = make()
    batch = make_batch()
    expected = loss_and_grad(params, batch)
    absent = ~batch["present"]
    batch["boxes"] = np.where(absent[..., None], np.float32(np.nan), batch["boxes"])
    batch["target"] = batch["target"] | absent[..., None]
    assert_same(loss_and_grad(params, batch), expected, atol=0)


def test_the_order_of_boxes_changes_nothing():
    _, params, loss_and_grad = make(STILL)
    batch = make_batch()
    expected = loss_and_grad(params, batch)
    order = np.random.default_rng(1).permutation(8)
    shuffled = {k: batch[k][:, order] for k in ("boxes", "present", "target")}
    assert_same(loss_and_grad(params, batch | shuffled), expected)


def test_each_box_counts_the_same_wherever_it_is():
    """Sums of single boxes add up to those of all; also of clips with many and with few."""
    task, params, _ = make(STILL)
    batch = make_batch()
    sums = jax.jit(lambda batch: task.train_sums(params, batch, jax.random.key(1)))
    whole = sums(batch)
    single = [sums(batch | {"present": batch["present"] & (np.arange(8) == i)}) for i in range(8)]
    assert_same(jax.tree.map(lambda *parts: sum(parts), *single), whole, atol=1e-4)


def test_the_sums_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4)).astype(np.float32)
    targets = rng.random((2, 3, 4)) < 0.5
    present = np.array([[True, True, False], [False, True, False]])
    sums = detect.box_sums(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(present))
    p = 1 / (1 + np.exp(-logits))
    errors = -(targets * np.log(p) + ~targets * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(sums["error"], (errors * present).sum(1), rtol=1e-5)
    assert sums["count"].tolist() == [2, 1]
    top = np.take_along_axis(targets, logits.argmax(-1)[..., None], -1)[..., 0]
    assert sums["hit"].tolist() == (top & present).sum(1).tolist()
    nan = detect.box_sums(
        jnp.full([1, 1, 2], jnp.nan), jnp.ones([1, 1, 2], bool), jnp.ones([1, 1], bool)
    )
    assert nan["hit"][0] == 0 and jnp.isnan(nan["error"][0])


def test_a_box_without_an_action_can_be_no_hit():
    """As a video without a label, see `test_multi_label`."""
    targets = jnp.asarray([[[1, 0], [0, 0], [0, 0]]], bool)
    logits = jnp.asarray([[[2.0, 1.0], [1.0, 2.0], [0.0, 0.0]]])
    task, *_ = make(STILL)
    sums = jax.tree.map(
        jnp.sum, detect.box_sums(logits, targets, jnp.asarray([[True, True, False]]))
    )
    assert float(sums["count"]) == 2
    assert float(task.summarize(sums)["hit"]) == 1


def steps(config, *, mesh, devices):
    """Train two steps; returns the losses, and the parameters after and before."""
    task = detect.build_task(config)
    mesh = make_mesh(mesh, devices)
    losses = []
    with jax.set_mesh(mesh):
        functions = jit_steps(
            task, make_optimizer(config, task), lambda _: 1e-3, mesh,
            seed=0, accumulation=config.accumulation,
        )  # fmt: skip
        state = functions.init()
        before = jax.tree.map(np.array, state.params)
        for seed in range(2):
            batch = jax.device_put(make_batch(seed=seed), batch_sharding(mesh))
            state, metrics = functions.train(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, jax.tree.map(np.asarray, state.params), before


@pytest.fixture(scope="module")
def one_device():
    return steps(load(), mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        (dict(data=8, fsdp=1, tensor=1), 1),
        (dict(data=2, fsdp=2, tensor=2), 1),
        (dict(data=2, fsdp=1, tensor=1), 2),
    ],
    ids=str,
)
def test_many_devices_and_parts_compute_what_one_does(one_device, axes, parts):
    """Clips have 1 to 5 boxes, so devices and parts have different numbers of them."""
    devices = jax.devices()[: math.prod(axes.values())]
    losses, params, _ = steps(load(f"--config.accumulation={parts}"), mesh=axes, devices=devices)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    assert_same(params, one_device[1], atol=2e-5)


def test_frozen_blocks_stay_and_what_follows_them_learns():
    one = dict(mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
    _, after, before = steps(load("--config.layer_decay=0"), **one)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after, before)
    assert not any(jax.tree.leaves([changed["encoder"]["embed"], changed["encoder"]["blocks"]]))
    assert all(jax.tree.leaves([changed["encoder"]["norm"], changed["head"]]))


def as_evaluated(batch, *, height=SIDE, width=SIDE):
    size = np.tile(np.int32([height, width]), (CLIPS, 1))
    return {k: v for k, v in batch.items() if k != "row"} | {"size": size}


def test_evaluation_sees_whole_images_and_nothing_outside_of_them():
    task, params, _ = make()
    batch = as_evaluated(make_batch(), height=SIDE - 6, width=SIDE - 3)
    evaluate = jax.jit(task.eval_sums)
    sums = evaluate(params, batch)
    assert sums["error"].shape == (CLIPS,) and sums["count"].tolist() == [
        int(n) for n in batch["present"].sum(1)
    ]
    other = batch["video"].copy()
    other[:, :, SIDE - 6 :], other[:, :, :, SIDE - 3 :] = 255, 255
    assert_same(evaluate(params, batch | {"video": other}), sums, atol=0)
    other[:, 0, 0, 0] = 255 - other[:, 0, 0, 0]
    assert (evaluate(params, batch | {"video": other})["error"] != sums["error"]).all()


@pytest.mark.slow
def test_a_detector_of_whole_images_ignores_the_boxes():
    """In training and in evaluation; the others do not."""
    batch = make_batch()
    boxes = {"boxes": np.tile(np.float32([3, 3, 9, 9]), (CLIPS, 8, 1))}
    for more, same in ((("--config.boxes.whole=True",), True), ((), False)):
        task, params, loss_and_grad = make(*more)
        first, second = loss_and_grad(params, batch), loss_and_grad(params, batch | boxes)
        assert (float(first[0]["error"]) == float(second[0]["error"])) == same
        seen = as_evaluated(batch)
        ours, theirs = task.eval_sums(params, seen), task.eval_sums(params, seen | boxes)
        assert (ours["error"] == theirs["error"]).all() == same


@pytest.mark.slow
def test_detected_boxes_are_extended_on_request():
    config = load()
    model = detect.build_model(config)
    _, params, _ = make()
    batch = as_evaluated(make_batch())
    tight = jnp.tile(jnp.asarray([8.0, 8, 24, 24]), (CLIPS, 8, 1))
    loose = jnp.tile(jnp.asarray([7.2, 7.6, 24.8, 24.4]), (CLIPS, 8, 1))
    batch["present"] = np.ones_like(batch["present"])
    logits = [
        detect.box_logits(model, params, batch | {"boxes": boxes}, whole=False, extend=extend)
        for boxes, extend in ((tight, (0.1, 0.05)), (loose, (0.0, 0.0)), (tight, (0.0, 0.0)))
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    assert np.abs(logits[0] - logits[2]).max() > 1e-3


def test_positions_of_the_whole_image_are_interpolated_from_the_crop():
    assert detect.build_model(load()).position_grid == (2, 4, 4)
    given = load("--config.model.position_grid=(2,6,6)")
    assert detect.build_model(given).position_grid == (2, 6, 6)


def test_the_short_side_follows_the_crop():
    sides = [
        detect.short_side(load_config("detect:b,ava", [f"--config.clip.{text}"]).clip)
        for text in ("frames=16", "height=336", "short_side=300")
    ]
    assert sides == [256, 384, 300]


def test_the_loss_of_a_predictor_of_frequencies():
    targets = np.array([[True, False], [False, False], [False, False], [False, False]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    rare = -math.log(7 / 8)  # of a class without a box, counted as half a box
    assert detect.prevalence_loss(targets, targets) == pytest.approx((entropy + rare) / 2)


def test_every_leaf_of_every_size_has_one_row_in_the_sharding_table():
    mesh = make_mesh(dict(data=2, fsdp=4, tensor=1))
    for size in ("s", "b", "l", "h"):
        config = load_config(f"detect:{size},ava")
        task = detect.build_task(config)
        optimizer = make_optimizer(config, task)
        state = jax.eval_shape(lambda: make_state(task, optimizer, seed=0, ema=True))  # noqa: B023
        shardings = state_sharding(state, mesh)
        assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(state))


def test_ids_without_a_class_list_are_those_of_ava_in_its_recipes():
    """Else all 80 would be scored, and not the 60 that count."""
    path = f"{SCENES}/val.csv"
    config = load_config("detect:tiny,ava")
    names = open_key_frames(config, path).class_names
    assert names == AVA_CLASSES and len(evaluated_labels(names, 80)) == 60
    config.data.classes = f"{SCENES}/classes.pbtxt"
    assert open_key_frames(config, path).class_names[:2] == ("walk", "run")
    assert open_key_frames(load_config("detect:tiny,custom"), path).class_names[:2] == ("1", "2")


def test_colours_need_three_channels():
    grey = ["--config.model.mean=(0.5,)", "--config.model.std=(0.2,)"]
    with pytest.raises(UserError, match="clips have 1 channels: use --config.augment.hue=0"):
        detect.build_task(load(*grey))


# Through the command line, on films.
SCENES = ROOT / "data/mocap_scenes"
RUN = [
    "--config=detect:tiny,custom",
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=16" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.boxes.max=8",
    "--config.batch_size=8",
    "--config.lr=1e-2",
    "--config.base_lr=0",
    "--config.warmup_steps=2",
    "--config.log_every=1",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The boxes of four films to train on and of two to evaluate, which are of two sizes."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, films in (("train", 4), ("val", 2)):
        rows = (SCENES / f"{name}.csv").read_text().splitlines()
        first = sorted({row[:3] for row in rows})[:films]
        kept = [row for row in rows if row[:3] in first]
        (folder / f"{name}.csv").write_text("\n".join(kept) + "\n")
    keys = dict(train=folder / "train.csv", eval=folder / "val.csv", videos=SCENES)
    return [f"--config.data.{key}={value}" for key, value in keys.items()] + [
        f"--config.data.classes={SCENES}/classes.pbtxt"
    ]


def arguments(workdir, *more, steps=6):
    return ["train", f"--workdir={workdir}", *RUN, f"--config.steps={steps}", *map(str, more)]


@pytest.fixture(scope="module")
def detector(tmp_path_factory, pretrained, scenes):
    workdir = tmp_path_factory.mktemp("detector")
    start = f"--config.init_from={pretrained}"
    cli.main(arguments(workdir, start, *scenes, "--config.save_every=3"))
    return workdir


@pytest.mark.slow
def test_a_run_from_pretraining_leaves_a_detector_and_its_map(detector, pretrained):
    params, config = load_params(str(detector))
    assert config.model.classes == 13 and config.data.class_names[12] == "near_other"
    assert params["head"]["bias"].shape == (13,)
    before, _ = load_params(str(pretrained))
    assert params["encoder"]["norm"]["scale"].shape == before["encoder"]["norm"]["scale"].shape
    (row,) = held_out(detector)
    assert 0 < row["eval/map"] < 1 and 0 <= row["eval/hit"] <= 1
    values = [loss for loss, _ in losses(detector).values()]
    assert float.fromhex(values[0]) == pytest.approx(math.log(2), abs=1e-3)
    assert float.fromhex(values[-1]) < 0.6
    assert "near_other" in (detector / "classes.csv").read_text()


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(detector, pretrained, scenes, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (detector / "checkpoints/3").rename(tmp_path / "checkpoints/3")
    cli.main(arguments(tmp_path, f"--config.init_from={pretrained}", *scenes))
    assert "going on from step 3" in capsys.readouterr().out
    straight = losses(detector)
    assert losses(tmp_path) == {step: straight[step] for step in (4, 5, 6)}
    assert held_out(tmp_path) == held_out(detector)


@pytest.mark.slow
def test_from_a_classifier_the_table_names_what_is_new(classifier, scenes, tmp_path, capsys):
    folder, params, _ = classifier
    start = f"--config.init_from={folder}"
    cli.main(arguments(tmp_path, start, *scenes, "--config.boxes.whole=True", steps=3))
    said = capsys.readouterr().out
    assert "fresh       encoder/norm/bias" in said and "left out    fc_norm/bias" in said
    assert "the whole image for each" in said
    assert "loss of a predictor of the class frequencies 0." in said
    assert "walk " in said and "(training boxes)" in said
    after, _ = load_params(str(tmp_path))
    ours, theirs = after["encoder"]["embed"]["kernel"], params["encoder"]["embed"]["kernel"]
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.mark.slow
def test_a_detector_goes_on_only_as_what_it_is(detector, scenes, capsys):
    said = fails(capsys, *arguments(detector, *scenes, "--config.model.classes=14"))
    assert "holds a checkpoint with data.class_names=" in said


def make_videos(counts, labels, names=("a", "b", "c"), name="list"):
    """Return key frames with `counts` boxes each; labels: the one action of each box, or None."""
    total = sum(counts)
    targets = np.zeros([total, len(names)], bool)
    for row, label in enumerate(labels):
        if label is not None:
            targets[row, label] = True
    frames = KeyFrames(
        seconds=np.arange(len(counts), dtype=float),
        names=("film",) * len(counts),
        stamps=np.arange(len(counts), dtype=float),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=np.tile(np.float32([0, 0, 1, 1]), (total, 1)),
        targets=targets,
        scores=np.ones(total, np.float32),
        persons=np.full(total, -1),
    )
    return Videos(("film.mp4",) * len(counts), None, names, name, key_frames=frames)


def test_preparing_names_the_classes_and_says_what_is_left_out():
    train = make_videos([2, 0, 1], [0, 1, None])
    held_out_videos = make_videos([1, 0], [2], name="val")
    config, train, other = detect.prepare(
        load_config("detect:tiny,custom", ["--config.model.classes=4"]), train, held_out_videos
    )
    assert config.model.classes == 4 and config.data.class_names == ("a", "b", "c", "4")
    assert len(train) == 2 and train.key_frames.targets.shape == (3, 4)
    assert len(other) == 2 and other.key_frames.targets.shape == (1, 4)
    left_out, unseen, loss = train.notes
    assert left_out == "1 key frames without boxes left out"
    assert unseen == "1 classes of val that training never sees, first c"
    assert loss.startswith("loss of a predictor of the class frequencies 0.")


def test_key_frames_that_cannot_be_learned_are_refused():
    with pytest.raises(UserError, match="list has no boxes: there is nothing to train on"):
        detect.prepare(load_config("detect:tiny,custom"), make_videos([0, 0], []), None)
    config = load_config("detect:tiny,custom", ["--config.model.classes=2"])
    with pytest.raises(UserError, match="has 3 classes, model.classes is 2: use --config.model"):
        detect.prepare(config, make_videos([1], [0]), None)


@pytest.mark.slow
def test_a_plan_and_synthetic_videos_need_no_annotations(tmp_path, capsys):
    cli.main(["plan", *RUN, "--config.steps=3", "--config.model.classes=5"])
    assert "8 clips a step" in capsys.readouterr().out
    synthetic = ["--config.data.train=synthetic", "--config.data.holdout=0.001"]
    cli.main(arguments(tmp_path, *synthetic, "--config.model.classes=5", steps=3))
    assert "held-out at step 3" in capsys.readouterr().out
