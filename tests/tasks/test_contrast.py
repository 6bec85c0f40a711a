"""Contrastive pre-training: the order of the momentum update, any mesh, and what starts from it."""

import jax
import numpy as np
import pytest
from runs import fails, held_out

from videomae_jax import cli
from videomae_jax.config import load_config, load_config_and_given
from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import batch_sharding, make_mesh, path_name
from videomae_jax.diagnostics.collectives import read_collectives
from videomae_jax.diagnostics.plan import savings
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import load_checkpoint, save_checkpoint
from videomae_jax.interop.init_from import with_source_geometry
from videomae_jax.tasks import classify, contrast, probe
from videomae_jax.training.checkpoint import save_params
from videomae_jax.training.optim import (
    Schedule,
    average_decay,
    make_optimizer,
    warmup_cosine,
)
from videomae_jax.training.step import abstract_batch, jit_steps
from videomae_jax.training.transfer import transfer_encoder
from videomae_jax.training.workdir import read_metrics

TINY = [
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=16" for side in ("height", "width")),
    *(f"--config.clip.source_{side}=20" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.model.head.hidden=32",
    "--config.model.head.dim=16",
    "--config.batch_size=16",
    # They take as long to compile as all the rest.
    "--config.augment.jitter=0",
    "--config.augment.blur=(0.0,0.0)",
]
STEPS = 4


def load(*overrides):
    return load_config("contrast:tiny,custom", [*TINY, *overrides])


def run(config, mesh, devices=None):
    """Train on synthetic clips; returns the losses, and all states as host arrays."""
    task = contrast.build_task(config)
    mesh = make_mesh(mesh, devices)
    schedule = Schedule(STEPS, 1, 1e-3, 0.0)
    batches = synthetic_batches(
        shape=task.samplers()[0].shape, batch_size=2 * config.batch_size, seed=0, num_steps=STEPS
    )
    losses, states = [], []
    with jax.set_mesh(mesh):
        functions = jit_steps(
            task,
            make_optimizer(config, task),
            warmup_cosine(schedule),
            mesh,
            seed=0,
            accumulation=1,
            ema_decay=average_decay(config, task, steps=schedule.steps),
        )
        state = functions.init()
        states.append(jax.tree.map(np.array, state))
        with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as feed:
            for batch in feed:
                state, metrics = functions.train(state, batch)
                losses.append(float(metrics["loss"]))
                states.append(jax.tree.map(np.array, state))
    return losses, states


@pytest.fixture(scope="module")
def one_device():
    return run(load(), dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])


def test_the_decay_rises_to_1_as_a_half_cosine():
    decay = contrast.momentum(400, first=0.99)
    found = [float(decay(step)) for step in (0, 100, 200, 300, 400)]
    np.testing.assert_allclose(found, [0.99, 0.9914645, 0.995, 0.9985355, 1], atol=1e-7)


@pytest.mark.slow
def test_the_average_is_updated_before_the_keys_from_the_weights_before_the_step(one_device):
    """As MoCo v3 does: k <- m k + (1 - m) q, then the keys by k, then a step of q."""
    _, states = one_device
    decay = contrast.momentum(STEPS, first=0.99)
    keys = states[0].params
    for step, state in enumerate(states):
        m = np.float64(decay(step))
        keys = jax.tree.map(lambda k, q, m=m: m * k + (1 - m) * q, keys, state.params)
        # The state before a step has the average that its keys are made by.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, keys)
    moved = jax.tree.map(lambda a, b: (a != b).any(), states[0].ema, states[-1].ema)
    assert moved["projector"]["fc1"]["kernel"]


@pytest.mark.slow
def test_gradients_reach_all_but_the_frozen_patches(one_device):
    _, states = one_device
    first, last = states[0], states[-1]
    for path, mean in jax.tree_util.tree_leaves_with_path(last.opt_state[0][1].mu):
        assert mean.any() != path_name(path).startswith("encoder/embed/"), path_name(path)
    embed = [state.params["encoder"]["embed"] for state in (first, last)]
    jax.tree.map(np.testing.assert_array_equal, *embed)
    assert not embed[0]["bias"].any() and embed[0]["kernel"].any()


@pytest.mark.slow
def test_eight_devices_and_chunks_compute_what_one_does(one_device):
    losses, states = run(load("--config.chunks=2"), dict(data=4, fsdp=2, tensor=1))
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
    # Loose: a ReLU near its kink amplifies the last digit; float64 in tests/models is exact.
    for ours, theirs in zip(
        jax.tree.leaves(states[1]), jax.tree.leaves(one_device[1][1]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert all(1 < loss < 3.5 for loss in losses)  # .8 ln 16 = 2.2 is chance


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 2])
def test_between_devices_go_sums_and_one_gather_of_the_keys(chunks):
    config = load(f"--config.chunks={chunks}")
    task, mesh = contrast.build_task(config), make_mesh(dict(data=8, fsdp=1, tensor=1))
    with jax.set_mesh(mesh):
        decay = average_decay(config, task, steps=STEPS)
        options = dict(seed=0, accumulation=1, ema_decay=decay)
        steps = jit_steps(task, make_optimizer(config, task), lambda _: 1e-3, mesh, **options)
        batch = abstract_batch(task.samplers()[0], 32, mesh, labels=None)
        text = steps.train.lower(steps.abstract_state, batch).compile().as_text()
    found = {row.kind: row for row in read_collectives(text, hosts=[0] * 8)}
    assert set(found) == {"all-reduce", "all-gather"}
    # Each device gets the float32 keys of the others: 7/8 of [16, 2, 16].
    assert found["all-gather"].calls == 1 and found["all-gather"].bytes == 4 * 16 * 2 * 16 * 7 / 8


def test_a_plan_divides_the_encoder_s_part_of_a_step():
    assert next(savings(load(), 1))[0] == {"chunks": 2}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("accumulation=4", "use --config.accumulation=1 --config.chunks=4"),
        ("batch_size=1", "batch_size 1: the clips of a video are compared with those of the"),
        ("repeats=4", "the views of a video are 2 clips, use 2"),
    ],
)
def test_what_has_nothing_to_compare_is_refused(override, words):
    with pytest.raises(UserError, match=words):
        contrast.prepare(load(f"--config.{override}"), None, None)


def test_what_a_device_cannot_divide_is_refused():
    contrast.check_clips(12, chunks=4)
    with pytest.raises(UserError, match="use --config.chunks=6"):
        contrast.check_clips(12, chunks=7)
    with pytest.raises(UserError, match="a device has 5 clips of a step"):
        contrast.check_clips(5, chunks=1)
    with pytest.raises(UserError, match="clip.source_width 20 is less than clip.width 24"):
        contrast.build_task(load("--config.clip.width=24"))


@pytest.fixture(scope="module")
def contrasted(tmp_path_factory, one_device):
    """A work directory with the last weights."""
    workdir = tmp_path_factory.mktemp("contrasted")
    save_params(str(workdir), one_device[1][-1].params, load())
    return workdir


@pytest.mark.slow
def test_fine_tuning_and_probes_start_from_it(contrasted, tmp_path):
    checkpoint = load_checkpoint(str(contrasted))
    for name, module in (("finetune:tiny,custom", classify), ("probe:linear,tiny,custom", probe)):
        flags = [f"--config.init_from={contrasted}", "--config.model.classes=3"]
        config = with_source_geometry(*load_config_and_given(name, flags))
        assert config.clip.frames == 4 and config.model.encoder.depth == 1
        fresh = jax.eval_shape(module.build_task(config).init, jax.random.key(0))
        _, table = transfer_encoder(checkpoint.params, fresh)
        assert not table.unexpected and "projector/fc1/kernel" in table.left_out
        assert "predictor/norm1/scale" in table.left_out
    # Other formats hold the encoder alone.
    save_checkpoint(str(tmp_path / "x.safetensors"), checkpoint, to="safetensors")
    read = load_checkpoint(str(tmp_path / "x.safetensors"), num_heads=4)
    assert set(read.params) == {"encoder"} and read.config.task == "encoder"
    encoder = checkpoint.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, read.params["encoder"], encoder)


@pytest.mark.slow
def test_scores_of_held_out_clips(one_device):
    task = contrast.build_task(load())
    (batch,) = synthetic_batches(shape=(4, 16, 16, 3), batch_size=4, seed=0, num_steps=1)
    there = np.array([True, True, True, False])
    sums = jax.jit(task.eval_sums)(one_device[1][-1].params, batch | {"valid": there})
    scores = task.summarize({name: value[there].sum() for name, value in sums.items()})
    assert next(iter(scores)) == "loss" and scores["candidates"] == 3
    assert np.isfinite(list(scores.values())).all() and 0 < scores["spread"] < 1


@pytest.mark.slow
def test_a_run_and_the_commands_after_it(labelled, tmp_path, capsys):
    """With every augmentation and kNN."""
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    small = [text for text in TINY if "augment" not in text] + ["--config.batch_size=8", *labelled]
    command = ["train", "--config=contrast:tiny,custom", f"--workdir={run}", *small]
    length = ["--config.steps=3", "--config.warmup_steps=1", "--config.log_every=1"]
    cli.main([*command, *length, "--config.knn.k=3"])
    assert "a reconstruction" in capsys.readouterr().out
    row = read_metrics(run)[0]
    assert {"loss", "match", "positive", "negative", "spread"} <= set(row)
    assert 0 < row["spread"] < 1 and abs(row["negative"]) < 0.2 and row["loss"] < 3
    (row,) = held_out(run)
    assert row["eval/candidates"] == 2 and {"eval/knn_top1", "eval/ema_knn_top1"} <= set(row)
    # One command after another starts from it.
    command = ["train", "--config=finetune:tiny,custom", f"--workdir={tuned}", *labelled]
    # Without RandAugment, which takes as long to compile as all the rest.
    plain = "--config.augment.operations=0"
    cli.main([*command, f"--config.init_from={run}", "--config.steps=2", plain])
    assert "projector/fc1/kernel" in capsys.readouterr().out
    train, evaluate = (text.partition("=")[2] for text in labelled)
    for more in ([], ["--ema"], ["--untrained"]):
        data = ["--train", train, "--eval", evaluate, "--k", "3"]
        cli.main(["knn", f"--checkpoint={run}", *data, *more])
    cli.main(["extract", evaluate, f"--checkpoint={run}", "--out", f"{tmp_path}/x.npz"])
    said = fails(capsys, "evaluate", f"--checkpoint={run}", f"--manifest={evaluate}")
    assert "was trained to contrast, it has no classes: fine-tune it" in said
