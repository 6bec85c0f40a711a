"""The step: what it computes, on how many devices, and what it leaves alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny

from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import batch_sharding, make_mesh
from videomae_jax.tasks import pretrain
from videomae_jax.training.optim import Schedule, base_optimizer, warmup_cosine
from videomae_jax.training.step import jit_steps


def run(config, *, mesh, steps=3, devices=None):
    """Train a few steps on synthetic clips; returns the losses and the last state."""
    task = pretrain.build_task(config)
    mesh = make_mesh(mesh, devices)
    schedule = warmup_cosine(Schedule(100, 2, 1e-3, 1e-5))
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
            task, base_optimizer(config), schedule, mesh, seed=0, accumulation=config.accumulation
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


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        pytest.param(dict(data=8, fsdp=1, tensor=1), 1, marks=slow),
        pytest.param(dict(data=4, fsdp=2, tensor=1), 1, marks=slow),
        pytest.param(dict(data=2, fsdp=2, tensor=2), 1, marks=slow),
        (dict(data=2, fsdp=2, tensor=2), 2),
        pytest.param(dict(slices=2, data=4, fsdp=2, tensor=1), 1, marks=slow),
        pytest.param(dict(data=2, fsdp=1, tensor=1), 4, marks=slow),
    ],
    ids=str,
)
def test_any_mesh_and_parts_compute_what_one_device_does(one_device, mesh, parts):
    devices = jax.devices()[: math.prod(mesh.values()) // mesh.get("slices", 1)]
    losses, state = run(tiny(f"--config.accumulation={parts}"), mesh=mesh, devices=devices)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@slow
@pytest.mark.parametrize("change", ["model.decoder_attention=cross", "optimizer.kind=muon"])
def test_a_change_of_the_recipe_on_eight_devices(change):
    changed = tiny(f"--config.{change}")
    one, _ = run(changed, mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
    eight, _ = run(changed, mesh=dict(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


@slow
def test_parts_of_unequal_counts_weigh_by_their_counts():
    dual = ("--config.mask.decoder_ratio=0.5", "--config.clip.frames=8")
    mesh = dict(data=1, fsdp=1, tensor=1)
    whole, _ = run(tiny(*dual), mesh=mesh, devices=jax.devices()[:1])
    parts, _ = run(tiny(*dual, "--config.accumulation=8"), mesh=mesh, devices=jax.devices()[:1])
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits(one_device):
    losses, state = run(tiny(), mesh=dict(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
    assert losses == one_device[0]
    assert all(
        (a == b).all()
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True)
    )


@slow
def test_bfloat16_computes_about_the_same_and_keeps_float32_state(one_device):
    losses, state = run(
        tiny("--config.run.dtype=bfloat16"),
        mesh=dict(data=1, fsdp=1, tensor=1),
        devices=jax.devices()[:1],
    )
    np.testing.assert_allclose(losses, one_device[0], rtol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


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
            base_optimizer(config),
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
