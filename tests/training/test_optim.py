"""The learning rate of every step, which parameters decay, and the updates of Muon."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import DATA
from runs import tiny

from videomae_jax.config import load_config
from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.tasks import pretrain
from videomae_jax.training.optim import (
    Schedule,
    base_optimizer,
    decay_mask,
    layer_scales,
    make_optimizer,
    make_schedule,
    warmup_cosine,
)


@pytest.mark.parametrize(
    "table", json.loads((DATA / "recipe_tables.json").read_text())["lr_schedule"]
)
def test_the_schedule_is_the_reference_s(table):
    per_epoch = table["steps_per_epoch"]
    plan = Schedule(
        steps=table["epochs"] * per_epoch,
        warmup_steps=table["warmup_epochs"] * per_epoch,
        peak_lr=table["base"],
        final_lr=table["final"],
    )
    rates = [float(warmup_cosine(plan)(step)) for step in range(plan.steps)]
    np.testing.assert_allclose(rates, table["values"], atol=1e-6 * table["base"])


def test_the_rate_scales_with_the_batch_and_lr_does_not():
    base = make_schedule(load_config("pretrain:b,k400"), examples=240_000)
    assert base.peak_lr == pytest.approx(1.5e-4 * 8) and base.final_lr == pytest.approx(8e-5)
    assert base.steps == 1600 * 117
    assert base.warmup_steps == 40 * 117
    fixed = make_schedule(tiny("--config.min_lr=1e-6"), examples=1000)
    assert (fixed.peak_lr, fixed.final_lr) == (1e-3, 1e-6)
    # Neither epochs nor the rate count the repeated clips of a video.
    repeated = make_schedule(load_config("pretrain:b,k400,v2"), examples=240_000)
    assert repeated.steps == 300 * 234 and repeated.peak_lr == pytest.approx(4e-3)


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


def test_a_layer_decay_of_zero_trains_only_what_follows_the_blocks():
    tree = {"encoder": {"embed": {"kernel": jnp.ones([2, 3])}, "norm": {"scale": jnp.ones(3)}}}
    tree["encoder"]["blocks"] = {"mlp": {"kernel": jnp.ones([4, 3, 3])}}
    tree["head"] = {"kernel": jnp.ones([3, 2])}
    scales = layer_scales(tree, 0.0)
    assert scales["encoder"]["embed"]["kernel"] == 0
    assert not scales["encoder"]["blocks"]["mlp"]["kernel"].any()
    assert scales["encoder"]["norm"]["scale"] == scales["head"]["kernel"] == 1


def test_a_layer_decay_that_a_task_would_ignore_is_refused():
    config = tiny("--config.layer_decay=0.5")
    task = pretrain.build_task(config)._replace(wrap_optimizer=lambda optimizer: optimizer)
    with pytest.raises(UserError, match="layer_decay 0.5 has no effect in the task"):
        make_optimizer(config, task)


def test_muon_makes_the_updates_of_matrices_orthogonal_and_leaves_the_rest_to_adam():
    attention = {"qkv": (2, 24, 3, 2, 8), "q_bias": (2, 2, 8)}
    shapes = {
        "heads": {"value": (3, 24, 2, 8), "query": (3, 2, 24)},  # of probes
        "blocks": {"attn": attention, "mlp": {"fc1": {"kernel": (2, 24, 64)}}},
        "embed": {"kernel": (48, 24), "bias": (24,)},
    }
    random = np.random.default_rng(0)
    grads = jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )
    optimizer = base_optimizer(tiny("--config.optimizer.kind=muon"))
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)

    def matrices(tree):
        qkv = np.moveaxis(tree["blocks"]["attn"]["qkv"], 2, 1).reshape(6, 24, 16)
        value = np.reshape(tree["heads"]["value"], (3, 24, 16))
        return [*qkv, *value, *tree["blocks"]["mlp"]["fc1"]["kernel"], tree["embed"]["kernel"]]

    for gradient, update in zip(matrices(grads), matrices(updates), strict=True):
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        inside = left.T @ np.asarray(update) @ right.T / (0.2 * max(update.shape) ** 0.5)
        # Five iterations bring the singular values near 1, and keep the singular vectors.
        assert 0.65 < inside.diagonal().min() and inside.diagonal().max() < 1.25
        np.testing.assert_allclose(inside, np.diag(inside.diagonal()), atol=0.01)
    # The first update of Adam with Nesterov momentum: the sign of the gradient times a constant.
    for tree in (grads, updates):
        del tree["blocks"]["attn"]["qkv"], tree["blocks"]["mlp"], tree["embed"]["kernel"]
        del tree["heads"]["value"]
    signs = jax.tree.map(lambda gradient: (1 + 0.9 / 1.9) * np.sign(gradient), grads)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), updates, signs)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="optimizer.kind 'sgd': use adamw or muon"):
        base_optimizer(tiny("--config.optimizer.kind=sgd"))
