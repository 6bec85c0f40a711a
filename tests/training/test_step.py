"""The step: what it computes, on how many devices, and what it leaves alone."""

import json
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import DATA
from runs import count_norms_taken_in

from videomae_jax.config import load_config
from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import (
    batch_sharding,
    batch_share,
    make_mesh,
    path_name,
    split_slices,
    state_sharding,
)
from videomae_jax.diagnostics.collectives import read_collectives
from videomae_jax.errors import UserError
from videomae_jax.tasks import pretrain
from videomae_jax.training.banner import length_line
from videomae_jax.training.optim import Schedule, adamw, decay_mask, make_schedule, warmup_cosine
from videomae_jax.training.step import TrainState, jit_steps, make_state

TINY = (
    "--config.clip.height=32",
    "--config.clip.width=32",
    "--config.clip.frames=4",
    "--config.mask.ratio=0.75",
    "--config.batch_size=8",
    "--config.lr=1e-3",
    "--config.base_lr=0",
    "--config.model.encoder.depth=2",
)


def tiny(*more):
    return load_config("pretrain:tiny,custom", [*TINY, *more])


def run(config, *, mesh, steps=3, devices=None):
    """Train a few steps on synthetic clips; returns the losses and the last state."""
    task = pretrain.build_task(config)
    mesh = make_mesh(mesh, devices)
    schedule = warmup_cosine(Schedule(100, 2, 10, 1e-3, 1e-5))
    clip = config.clip
    batches = synthetic_batches(
        shape=(clip.frames, clip.height, clip.width, 3),
        batch_size=config.batch_size,
        seed=0,
        num_steps=steps,
    )
    losses = []
    with jax.set_mesh(mesh):
        functions = jit_steps(
            task, adamw(config), schedule, mesh, seed=0, accumulation=config.accumulation
        )
        state = functions.init()
        with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as feed:
            for batch in feed:
                state, metrics = functions.train(state, batch)
                losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def one_device():
    return run(tiny(), mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(dict(data=8, fsdp=1, tensor=1), marks=pytest.mark.slow),
        dict(data=4, fsdp=2, tensor=1),
        dict(data=2, fsdp=2, tensor=2),
        pytest.param(dict(slices=2, data=4, fsdp=2, tensor=1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_compute_what_one_does(one_device, mesh):
    losses, state = run(tiny(), mesh=mesh)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_a_cross_attention_decoder_on_eight_devices():
    cross = tiny("--config.model.decoder_attention=cross")
    one, _ = run(cross, mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
    eight, _ = run(cross, mesh=dict(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "mesh"),
    [
        pytest.param(4, dict(data=2, fsdp=1, tensor=1), marks=pytest.mark.slow),
        (2, dict(data=2, fsdp=2, tensor=1)),
    ],
    ids=str,
)
def test_accumulated_parts_add_up_to_the_batch(one_device, parts, mesh):
    devices = jax.devices()[: math.prod(mesh.values())]
    losses, state = run(tiny(f"--config.accumulation={parts}"), mesh=mesh, devices=devices)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_parts_of_unequal_counts_weigh_by_their_counts():
    dual = ("--config.mask.decoder_ratio=0.5", "--config.clip.frames=8")
    mesh = dict(data=1, fsdp=1, tensor=1)
    whole, _ = run(tiny(*dual), mesh=mesh, devices=jax.devices()[:1])
    parts, _ = run(tiny(*dual, "--config.accumulation=8"), mesh=mesh, devices=jax.devices()[:1])
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_each_clip_of_a_video_has_a_mask_of_its_own():
    config = tiny("--config.repeats=2", "--config.batch_size=1")
    task = pretrain.build_task(config)
    params = task.init(jax.random.key(0))
    (clip,) = synthetic_batches(shape=(4, 32, 32, 3), batch_size=1, seed=0, num_steps=1)
    ids = jnp.full([1], 7, jnp.int32)
    first, second, third = (
        task.train_sums(params, clip | {"id": ids, "row": ids * 0 + row}, jax.random.key(1))
        for row in (0, 1, 2)
    )
    assert first["error"] != second["error"] and first["error"] == third["error"]
    v2 = load_config("pretrain:b,k400,v2")
    assert (v2.batch_size, v2.repeats) == (1024, 4)
    plan = make_schedule(v2, examples=240_000)  # of videos: neither epochs nor the rate count clips
    assert plan.steps_per_epoch == 234 and plan.peak_lr == pytest.approx(4e-3)
    assert length_line(v2, plan, 240_000).endswith(
        "299.5 epochs of 240,000 videos, 1,198.1 views of each"
    )


def test_the_same_seed_gives_the_same_bits(one_device):
    losses, state = run(tiny(), mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
    assert losses == one_device[0]
    assert all(
        (a == b).all()
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True)
    )


def test_bfloat16_computes_about_the_same_and_keeps_float32_state(one_device):
    losses, state = run(
        tiny("--config.run.dtype=bfloat16"),
        mesh=dict(data=1, fsdp=1, tensor=1),
        devices=jax.devices()[:1],
    )
    np.testing.assert_allclose(losses, one_device[0], rtol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


def test_a_clip_is_resized_before_anything_else(one_device):
    task = pretrain.build_task(tiny())
    params = task.init(jax.random.key(0))
    (batch,) = synthetic_batches(shape=(4, 32, 32, 3), batch_size=2, seed=0, num_steps=1)
    sums = jax.jit(task.train_sums)
    plain = sums(params, batch, jax.random.key(1))
    canvas = np.pad(batch["video"], [(0, 0), (0, 0), (0, 8), (0, 16), (0, 0)])
    size = np.full([2, 2], 32, np.int32)
    same = sums(params, batch | {"video": canvas, "size": size}, jax.random.key(1))
    assert float(same["error"]) == pytest.approx(float(plain["error"]), rel=1e-6)
    # Twice as large and averaged again.
    large = batch["video"].repeat(2, axis=2).repeat(2, axis=3)
    shrunk = sums(params, batch | {"video": large, "size": 2 * size}, jax.random.key(1))
    assert float(shrunk["error"]) == pytest.approx(float(plain["error"]), rel=0.1)


def test_accelerators_resize_and_cpus_leave_it_to_the_host(monkeypatch):
    config = tiny("--config.clip.source_width=20")
    samplers = pretrain.build_task(config).samplers
    train, evaluate = samplers()
    assert train.shape == evaluate.shape == (4, 32, 32, 3) and not train.sized
    monkeypatch.setattr(pretrain, "platform_in_use", lambda: "tpu")
    train, evaluate = samplers()
    # Never smaller than the clip: larger boxes come in its size.
    assert train.shape == (4, 256, 32, 3) and train.sized and evaluate.shape == (4, 32, 32, 3)


def compiled_text(mesh, *more):
    config = tiny(*more)
    mesh, parts = make_mesh(mesh), config.accumulation
    with jax.set_mesh(mesh):
        functions = jit_steps(
            pretrain.build_task(config),
            adamw(config),
            lambda _: 1e-3,
            mesh,
            seed=0,
            accumulation=parts,
        )
        sharding, clips = batch_sharding(mesh), 8 * parts
        batch = {
            "video": jax.ShapeDtypeStruct((clips, 4, 48, 40, 3), jnp.uint8, sharding=sharding),
            "id": jax.ShapeDtypeStruct((clips,), jnp.int32, sharding=sharding),
            "size": jax.ShapeDtypeStruct((clips, 2), jnp.int32, sharding=sharding),
        }
        return functions.train.lower(functions.abstract_state, batch).compile().as_text()


def collectives(text):
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return {match.group(1) for match in re.finditer(rf" ({kinds})(-start)?\(", text)}


def test_data_parallel_reduces_gradients_and_moves_nothing_else():
    assert collectives(compiled_text(dict(data=8, fsdp=1, tensor=1))) == {"all-reduce"}


def test_accumulated_gradients_meet_once_a_step():
    def sent(*more):
        text = compiled_text(dict(data=8, fsdp=1, tensor=1), *more)
        return read_collectives(text, hosts=[0] * 8)

    (whole,), (parts,) = sent(), sent("--config.accumulation=2")
    assert parts.kind == whole.kind == "all-reduce"
    # Of parts all gradients are sent, of a whole batch those of weights make those of norms.
    norms = 2 * 7 / 8 * 4 * count_norms_taken_in(tiny())
    assert parts.bytes == pytest.approx(whole.bytes + norms, rel=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--config.run.scan=True",), marks=pytest.mark.slow),
        ("--config.model.decoder_attention=cross",),
    ],
    ids=str,
)
def test_fsdp_gathers_parameters_and_reduces_gradients(more):
    # XLA for CPU keeps a part of an all-reduce where that for TPU has reduce-scatter: test_plan.
    kinds = collectives(compiled_text(dict(data=1, fsdp=8, tensor=1), *more))
    assert kinds == {"all-gather", "all-reduce"}


def test_only_data_crosses_from_slice_to_slice():
    mesh = make_mesh(dict(slices=2, data=4, fsdp=2, tensor=1))
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)
    assert numbers.shape == (4, 2, 1)
    assert set(numbers[:2].flat) == {0, 1, 2, 3} and set(numbers[2:].flat) == {4, 5, 6, 7}


def test_slices_are_what_the_devices_of_a_pod_say():
    class Chip(NamedTuple):
        id: int
        slice_index: int
        platform: str = "tpu"

    chips = [Chip(number, number % 2) for number in range(8)]
    assert [[chip.id for chip in part] for part in split_slices(chips)] == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
    ]
    assert split_slices(chips, count=2) == split_slices(chips)
    assert split_slices(chips, count=1) == [chips]
    with pytest.raises(UserError, match="mesh.slices=4 of 8 devices: use 2 or -1"):
        split_slices(chips, count=4)
    gpus = [Chip(number, number % 2, "gpu") for number in range(8)]
    assert split_slices(gpus) == [gpus]


def test_one_process_reads_the_whole_batch():
    assert batch_share(make_mesh(dict(data=2, fsdp=2, tensor=2))) == (0, 1)


def test_a_step_that_is_not_finite_changes_nothing_but_its_count():
    config = tiny()
    task = pretrain.build_task(config)

    def broken(params, batch, key):
        sums = task.train_sums(params, batch, key)
        bad = (batch["id"] == 7).any()
        return {**sums, "error": jnp.where(bad, jnp.nan, sums["error"])}

    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    batch = next(synthetic_batches(shape=(4, 32, 32, 3), batch_size=8, seed=0, num_steps=1))
    batch = {"video": batch["video"], "id": batch["id"]}
    with jax.set_mesh(mesh):
        functions = jit_steps(
            task._replace(train_sums=broken),
            adamw(config),
            lambda _: 1e-3,
            mesh,
            seed=0,
            accumulation=1,
        )
        start = functions.init()
        before = jax.tree.map(np.array, start)
        state, metrics = functions.train(start, batch)
        assert int(metrics["skipped"]) == 1 and not np.isfinite(metrics["loss"])
        for part in ("params", "opt_state"):
            old, new = getattr(before, part), getattr(state, part)
            jax.tree.map(np.testing.assert_array_equal, new, old)
        state, metrics = functions.train(state, {**batch, "id": batch["id"] + 100})
        assert int(metrics["skipped"]) == 0
        assert (np.asarray(state.params["mask_token"]) != before.params["mask_token"]).any()


@pytest.mark.parametrize(
    "table", json.loads((DATA / "recipe_tables.json").read_text())["lr_schedule"]
)
def test_the_schedule_is_the_reference_s(table):
    per_epoch = table["steps_per_epoch"]
    plan = Schedule(
        steps=table["epochs"] * per_epoch,
        warmup_steps=table["warmup_epochs"] * per_epoch,
        steps_per_epoch=per_epoch,
        peak_lr=table["base"],
        final_lr=table["final"],
    )
    rates = [float(warmup_cosine(plan)(step)) for step in range(plan.steps)]
    np.testing.assert_allclose(rates, table["values"], atol=1e-6 * table["base"])


def test_the_rate_scales_with_the_batch_and_lr_does_not():
    base = make_schedule(load_config("pretrain:b,k400"), examples=240_000)
    assert base.peak_lr == pytest.approx(1.5e-4 * 8) and base.final_lr == pytest.approx(8e-5)
    assert base.steps_per_epoch == 117 and base.steps == 1600 * 117
    assert base.warmup_steps == 40 * 117
    fixed = make_schedule(tiny("--config.min_lr=1e-6"), examples=1000)
    assert (fixed.peak_lr, fixed.final_lr) == (1e-3, 1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.lr=1e-3"], "lr=0.001 and base_lr=0.00015 are both set"),
        (["--config.base_lr=0"], "set one of them above 0"),
        (["--config.epochs=30"], "use 0 to 209"),
        (["--config.epochs=0"], "epochs 0: use 1 or more, or set steps"),
        (["--config.steps=5", "--config.warmup_steps=5"], "5 warm-up steps of 5: use 0 to 4"),
    ],
)
def test_impossible_plans_are_refused(overrides, words):
    config = load_config("pretrain:b,custom", overrides)
    with pytest.raises(UserError, match=words):
        make_schedule(config, examples=500)


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_only_matrices_decay(attention):
    config = tiny(f"--config.model.decoder_attention={attention}")
    params = jax.eval_shape(pretrain.build_task(config).init, jax.random.key(0))
    decays = {
        path_name(path)
        for path, yes in jax.tree_util.tree_leaves_with_path(decay_mask(params))
        if yes
    }
    assert all(name.endswith(("kernel", "/qkv")) for name in decays)
    # Embedding, decoder input, head, and four matrices in each of the two stacks.
    assert len(decays) == 3 + 2 * 4


def test_every_leaf_of_every_size_has_one_row_in_the_sharding_table():
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    for size in ("s", "b", "l", "h", "g", "b,k400,cross"):
        config = load_config(f"pretrain:{size}" + ",k400" * (len(size) == 1))
        task = pretrain.build_task(config)
        state = jax.eval_shape(lambda: make_state(task, adamw(config), seed=0))  # noqa: B023
        if size == "s":
            with pytest.raises(
                UserError, match=r"3 does not divide by mesh.tensor=2: use tensor=1"
            ):
                state_sharding(state, mesh)
        else:
            shardings = state_sharding(state, mesh)
            assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(state))


def test_an_unknown_leaf_is_not_sharded_by_accident():
    leaf = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(ValueError, match="params/surprise .* matches 0 rows"):
        state_sharding(
            TrainState(step=leaf, params={"surprise": leaf}, opt_state=(), skipped=leaf),
            make_mesh(dict(data=8, fsdp=1, tensor=1)),
        )


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (dict(data=3, fsdp=1, tensor=1), "needs 3 devices, there are 8"),
        (dict(data=-1, fsdp=3, tensor=1), "needs a multiple of 3 devices, there are 8"),
        (dict(data=-1, fsdp=-1, tensor=1), "at most one is -1"),
        (dict(data=0, fsdp=1, tensor=1), "at least 1"),
        (dict(slices=3, data=-1, fsdp=1, tensor=1), "mesh.slices=3 of 8 devices: use 1 or -1"),
        (dict(slices=2, data=1, fsdp=8, tensor=1), "mesh.data=1 does not divide by 2 slices"),
    ],
)
def test_impossible_meshes_are_refused(axes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(axes)
