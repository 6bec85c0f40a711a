"""Fine-tuning from a pre-trained run to a classifier, through the command line."""

import jax
import numpy as np
import pytest
from runs import KINDS, fails, held_out, losses, rows

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.videos import Videos
from videomae_jax.devices.sharding import make_mesh, state_sharding
from videomae_jax.errors import UserError
from videomae_jax.tasks import classify
from videomae_jax.tasks.build import positions_line
from videomae_jax.training.checkpoint import load_params
from videomae_jax.training.optim import make_optimizer
from videomae_jax.training.step import make_state
from videomae_jax.training.workdir import read_metrics

TINY = [
    "--config=finetune:tiny,custom",
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=16" for side in ("height", "width")),
    *(f"--config.clip.source_{side}=20" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.augment.operations=0",
    "--config.augment.min_area=0.5",
    "--config.batch_size=16",
    "--config.lr=3e-3",
    "--config.base_lr=0",
    "--config.warmup_steps=2",
    "--config.ema_decay=0.5",
    "--config.log_every=1",
]


def arguments(workdir, *more, steps=8):
    return ["train", f"--workdir={workdir}", *TINY, f"--config.steps={steps}", *map(str, more)]


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, pretrained, labelled):
    workdir = tmp_path_factory.mktemp("finetuned")
    start = f"--config.init_from={pretrained}"
    cli.main(arguments(workdir, start, *labelled, "--config.save_every=4"))
    return workdir


@pytest.mark.slow
def test_a_run_leaves_a_classifier_that_knows_its_classes(finetuned, pretrained):
    params, config = load_params(str(finetuned))
    assert config.data.class_names == KINDS and config.model.classes == 3
    assert params["head"]["bias"].shape == (3,)
    average, _ = load_params(str(finetuned), item="ema")
    assert jax.tree.structure(average) == jax.tree.structure(params)
    assert (average["head"]["kernel"] != params["head"]["kernel"]).any()
    (row,) = held_out(finetuned)
    assert {"eval/loss", "eval/top1", "eval/top5", "eval/ema_loss", "eval/ema_top1"} <= set(row)
    assert row["eval/top5"] == 1  # of three classes
    assert (finetuned / "curve.png").exists()
    with pytest.raises(UserError, match="has no ema"):
        load_params(str(pretrained), item="ema")


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit_and_loads_nothing_again(
    finetuned, pretrained, labelled, tmp_path, capsys
):
    start = f"--config.init_from={pretrained}"
    checkpoints = finetuned / "checkpoints"
    (tmp_path / "checkpoints").mkdir()
    (checkpoints / "4").rename(tmp_path / "checkpoints/4")
    (tmp_path / "metrics.jsonl").write_text((finetuned / "metrics.jsonl").read_text())
    before = held_out(tmp_path)
    # Every line of step 5 and later is written anew.
    cli.main(arguments(tmp_path, start, *labelled))
    said = capsys.readouterr().out
    assert "going on from step 4" in said and "weights of" not in said
    assert losses(tmp_path) == losses(finetuned)
    assert held_out(tmp_path) == before
    for item in ("params", "ema"):
        ours, theirs = (load_params(str(p), item=item)[0] for p in (tmp_path, finetuned))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_the_loss_falls_and_the_table_of_weights_is_printed(pretrained, tmp_path, capsys):
    (tmp_path / "train.csv").write_text(rows("train", KINDS[1:], range(2)))
    cli.main(
        arguments(
            tmp_path / "run",
            f"--config.init_from={pretrained}",
            f"--config.data.train={tmp_path}/train.csv",
            "--config.data.holdout=0",
            *("--config.augment.mixup=0", "--config.augment.cutmix=0", "--config.augment.erase=0"),
            steps=40,
        )
    )
    said = capsys.readouterr().out
    assert "15 matched, 0 missing, 0 reshaped" in said and "fresh       fc_norm/bias" in said
    assert "32 clips a step, 2 of each video" in said
    assert "positions  1d sin-cos, 2 x 2 x 2, made afresh for this size" in said
    values = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert np.mean(values[-5:]) < 0.7 * np.mean(values[:5])


@pytest.mark.slow
def test_every_augmentation_in_a_run_that_resumes_bit_for_bit(pretrained, labelled, tmp_path):
    every = [
        f"--config.init_from={pretrained}",
        *labelled,
        "--config.augment.operations=4",
        "--config.augment.min_area=0.08",
        "--config.drop_path=0.1",
        "--config.head_dropout=0.1",
        "--config.save_every=2",
    ]
    config = load_config(TINY[0].removeprefix("--config="), [*TINY[1:], *every[3:]])
    change = config.augment
    assert change.mixup and change.cutmix and change.erase and change.flip
    cli.main(arguments(tmp_path / "straight", *every, steps=4))
    (tmp_path / "resumed/checkpoints").mkdir(parents=True)
    source, target = (tmp_path / name / "checkpoints/2" for name in ("straight", "resumed"))
    source.rename(target)
    cli.main(arguments(tmp_path / "resumed", *every, steps=4))
    values = [row["loss"] for row in read_metrics(tmp_path / "straight") if "loss" in row]
    assert len(values) == 4 and np.isfinite(values).all()
    straight, resumed = losses(tmp_path / "straight"), losses(tmp_path / "resumed")
    assert resumed == {step: straight[step] for step in (3, 4)}
    for item in ("params", "ema"):
        ours, theirs = (
            load_params(str(tmp_path / name), item=item)[0] for name in ("straight", "resumed")
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_positions_of_another_size_are_named():
    model = classify.build_model(load_config("finetune:tiny,custom", ["--config.model.classes=2"]))
    assert positions_line((2, 3, 4), model) == "1d sin-cos, 2 x 3 x 4, made afresh for this size"
    model = model.clone(position_grid=(8, 14, 14), positions="3d")
    assert positions_line((2, 3, 4), model) == (
        "3d sin-cos, 2 x 3 x 4, interpolated from 8 x 14 x 14"
    )


@pytest.mark.slow
def test_weights_that_do_not_fit_end_the_run_in_one_line(pretrained, finetuned, tmp_path, capsys):
    start = f"--config.init_from={pretrained}"
    data = f"--config.data.train={tmp_path}/train.csv"
    (tmp_path / "train.csv").write_text(rows("train", KINDS, range(4)))
    wide = "--config.model.encoder.width=64"
    said = fails(capsys, *arguments(tmp_path / "a", start, data, wide))
    assert "of 1 blocks of width 128 where the config says 1 blocks of width 64: enc" in said
    said = fails(capsys, *arguments(tmp_path / "b", f"--config.init_from={tmp_path}", data))
    assert "no checkpoint in" in said
    # A classifier's work directory goes on only as what it is.
    (tmp_path / "train.csv").write_text(rows("train", ("jump", "roll", "run"), range(4)))
    said = fails(capsys, *arguments(finetuned, data))
    assert "data.class_names=('jump', 'roll', 'walk')" in said
    (tmp_path / "train.csv").write_text(rows("train", KINDS, range(4)))
    said = fails(capsys, *arguments(finetuned, data, "--config.ema_decay=0"))
    assert "ema_decay=0.5, the config says 0.0" in said
    said = fails(capsys, *arguments(finetuned, data, "--config.layer_decay=1"))
    assert "layer_decay=0.75, the config says 1.0" in said


def videos(labels, names=None, name="list"):
    labels = None if labels is None else np.asarray(labels, np.int32)
    count = 2 if labels is None else len(labels)
    return Videos(tuple(map(str, range(count))), labels, names, name)


def prepare(train, held_out=None, *overrides):
    config = load_config("finetune:tiny,custom", overrides)
    return classify.prepare(config, train, held_out)


def test_classes_come_from_the_training_videos():
    config, train, _ = prepare(videos([0, 2, 1]))
    assert config.model.classes == 3 and config.data.class_names == ()
    config, _, held = prepare(videos([0, 1, 2], ("a", "b", "c")), videos([0, 1], ("b", "c")))
    assert config.model.classes == 3 and config.data.class_names == ("a", "b", "c")
    assert held.labels.tolist() == [1, 2] and held.class_names == ("a", "b", "c")
    # Names of the config win, such as those of a run that had more classes.
    names = "--config.data.class_names=('c','b','a','d')"
    config, train, _ = prepare(videos([0, 1, 2], ("a", "b", "c")), None, names)
    assert config.model.classes == 4 and train.labels.tolist() == [2, 1, 0]
    # Classes that have no name get their number.
    config, train, _ = prepare(videos([0, 1], ("a", "b")), None, "--config.model.classes=4")
    assert config.model.classes == 4 and config.data.class_names == ("a", "b", "2", "3")
    assert train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("train", "held_out", "overrides", "words"),
    [
        (videos(None), None, [], "list has no labels"),
        (videos([0, 1]), videos(None, name="val"), [], "val has no labels"),
        (videos([0, 3]), None, ["--config.model.classes=3"], "use --config.model.classes=4"),
        (
            videos([0, 1], ("a", "b")),
            None,
            ["--config.data.class_names=('a','b','c')", "--config.model.classes=2"],
            "there are 3 class names, model.classes is 2: use --config.model.classes=3",
        ),
        (videos([0, 2]), videos([0, 1]), [], "1 of 2 held-out videos .* first 1: leave"),
        (
            videos([0, 1], ("walk", "run")),
            videos([0], ("wlk",), name="val"),
            [],
            "val has 1 classes .* first 'wlk'; did you mean 'walk'?",
        ),
        (videos([0, 1]), videos([0], ("walk",), name="val"), [], "val names its classes"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(train, held_out, overrides, words):
    with pytest.raises(UserError, match=words) as error:
        prepare(train, held_out, *overrides)
    assert str(error.value).count("\n") <= 1


def test_groups_and_clips_must_divide(labelled, tmp_path, capsys):
    three = ["--config.batch_size=3", "--config.repeats=8"]  # 24 clips, 3 on each device
    said = fails(capsys, *arguments(tmp_path, *labelled, *three))
    assert "groups of 4 do not divide the 3 clips" in said
    said = fails(capsys, *arguments(tmp_path, *labelled, "--config.batch_size=3"))
    assert "batch 3 is not divisible by 8 devices (data=8, fsdp=1) at 2 clips each: use 4" in said
    said = fails(capsys, *arguments(tmp_path, *labelled, "--config.layer_decay=-1"))
    assert "layer_decay is -1: use 0 (frozen blocks) to 1 (none)" in said


def test_every_leaf_of_every_size_has_one_row_in_the_sharding_table():
    mesh = make_mesh(dict(data=2, fsdp=4, tensor=1))
    for size in ("s", "b", "l", "h"):
        config = load_config(f"finetune:{size},k400", ["--config.model.classes=399"])
        task = classify.build_task(config)
        optimizer = make_optimizer(config, task)
        state = jax.eval_shape(lambda: make_state(task, optimizer, seed=0, ema=True))  # noqa: B023
        shardings = state_sharding(state, mesh)
        assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(state))
