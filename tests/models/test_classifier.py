"""The fine-tuning model against the original implementation, float32, 1e-5 of the largest value.

The golden file holds a tiny classifier's weights, a clip, soft targets, outputs, gradients and
the weights after three AdamW steps with layer decay, all computed by the original PyTorch code.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import DATA, load_golden, relative_error
from ml_collections import ConfigDict

from videomae_jax.config import load_config
from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.models.classifier import VideoClassifier, dropout, init_classifier
from videomae_jax.models.flops import finetune_flops
from videomae_jax.models.tokens import patch_grid, patchify
from videomae_jax.models.vit import SIZES, DropPath, Execution, drop_branch
from videomae_jax.tasks import classify, pretrain
from videomae_jax.tasks.classify import class_sums
from videomae_jax.training.optim import (
    base_optimizer,
    decay_mask,
    layer_decay_scales,
    scale_by_layer,
)
from videomae_jax.training.transfer import transfer_encoder

TOLERANCE = 1e-5
RUNS = {"unrolled": Execution(), "scanned, remat": Execution(scan=True, remat="full")}


@functools.cache
def load():
    return load_golden("finetune_tiny")


@pytest.fixture
def golden():
    return load()


@functools.cache
def setup(run="unrolled", **fields):
    golden = load()
    config = golden.config
    patch = (config["tubelet"], config["patch"], config["patch"])
    model = VideoClassifier(
        encoder=golden.encoder,
        patch=patch,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=config["classes"],
        run=RUNS[run],
        **fields,
    )
    video = jnp.asarray(golden.arrays["video_uint8"])
    grid = patch_grid(video.shape[1:4], patch)
    patches = patchify(video, patch)

    def loss(params):
        logits = model.apply({"params": params}, patches, grid)
        labels = jnp.asarray(golden.arrays["labels"])
        return class_sums(logits, golden.arrays["soft_targets"], labels)["error"].mean()

    return model, patches, grid, jax.jit(jax.value_and_grad(loss))


def test_logits_features_and_tokens(golden):
    model, patches, grid, _ = setup()
    params = {"params": golden.classifier_tree("param")}

    @jax.jit
    def outputs(patches):
        methods = ("__call__", "features", "tokens")
        return [model.apply(params, patches, grid, method=method) for method in methods]

    logits, features, tokens = outputs(patches)
    assert relative_error(logits, golden.arrays["logits"]) < TOLERANCE
    assert relative_error(features, golden.arrays["features"]) < TOLERANCE
    assert tokens.shape == (*patches.shape[:2], golden.encoder.width)
    # Augmented clips are float32 on the scale of uint8 ones.
    as_float, *_ = outputs(patches.astype(jnp.float32))
    np.testing.assert_array_equal(as_float, logits)


@pytest.mark.parametrize("run", RUNS)
def test_loss_and_every_gradient(golden, run):
    *_, loss_and_grad = setup(run)
    loss, grads = loss_and_grad(golden.classifier_tree("param"))
    assert abs(loss / golden.arrays["losses"][0] - 1) < TOLERANCE
    errors = jax.tree.map(relative_error, grads, golden.classifier_tree("grad"))
    assert max(jax.tree.leaves(errors)) < TOLERANCE, errors


@pytest.mark.slow
def test_three_adamw_steps_with_layer_decay(golden):
    *_, loss_and_grad = setup()
    c = golden.config
    settings = dict(
        b1=c["betas"][0], b2=c["betas"][1], eps=c["eps"], weight_decay=c["weight_decay"]
    )
    optimizer = optax.chain(
        base_optimizer(ConfigDict({"optimizer": {**settings, "clip_norm": 0.0, "kind": "adamw"}})),
        scale_by_layer(c["layer_decay"]),
    )
    params = jax.tree.map(jnp.asarray, golden.classifier_tree("param"))
    state = optimizer.init(params)
    for reference in golden.arrays["losses"]:
        loss, grads = loss_and_grad(params)
        assert abs(loss / reference - 1) < TOLERANCE
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - c["lr"] * u, params, updates)
    # Absolute, as in test_parity: Adam divides noise by noise where a gradient is near zero.
    after = golden.classifier_tree("param_after")
    errors = jax.tree.map(lambda p, r: jnp.abs(p - r).max(), params, after)
    assert max(jax.tree.leaves(errors)) < TOLERANCE, errors


def test_layer_scales_are_the_references(golden):
    table = json.loads((DATA / "recipe_tables.json").read_text())["layer_decay"]
    for row in table:
        np.testing.assert_allclose(
            layer_decay_scales(row["depth"], row["decay"]), row["scales"], rtol=1e-12
        )
    scales = layer_decay_scales(golden.encoder.depth, golden.config["layer_decay"])
    np.testing.assert_allclose(scales, golden.arrays["layer_scales"], rtol=1e-12)


def test_weight_decay_takes_matrices_only(golden):
    mask = decay_mask(golden.classifier_tree("param"))
    decayed = {path_name(p) for p, on in jax.tree_util.tree_leaves_with_path(mask) if on}
    blocks = ("attn/qkv", "attn/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")
    assert decayed == {
        "encoder/embed/kernel",
        "head/kernel",
        *(f"encoder/blocks/{name}" for name in blocks),
    }


@pytest.mark.parametrize("run", RUNS)
def test_drop_path_drops_whole_branches_of_single_clips(golden, run):
    model, patches, grid, _ = setup(run, drop_path=0.5)
    params = {"params": golden.classifier_tree("param")}

    def make(model):
        return jax.jit(lambda x, keys: model.apply(params, x, grid, keys, method="tokens"))

    tokens = make(model)
    keys = jax.random.split(jax.random.key(0), 32)
    many = jnp.broadcast_to(patches[:1], (32, *patches.shape[1:]))
    values = np.asarray(tokens(many, keys))
    # Of three blocks the first never drops, the second at .25, the last at .5; the branches of
    # both draw for themselves: 16 outcomes at most, and more than the four of a shared draw.
    distinct = np.unique(np.round(values[:, 0, 0], 4))
    assert 4 < len(distinct) <= 16
    # The draw of a clip depends on its key, not on its index in the batch.
    moved = tokens(many, jnp.roll(keys, 12))
    np.testing.assert_allclose(moved, np.roll(values, 12, axis=0), atol=1e-5)
    # Without keys, and at rate 0, nothing is dropped.
    plain, *_ = setup(run)
    np.testing.assert_array_equal(make(plain)(patches, keys[:2]), tokens(patches, None))


def test_what_is_left_is_scaled_up_to_keep_the_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    kept = drop_branch(jnp.ones([4000, 2, 3]), DropPath(jnp.float32(0.25), keys), 0)
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
    assert float(jnp.ptp(kept, axis=(1, 2)).max()) == 0
    assert abs(float(kept.mean()) - 1) < 0.03
    values = dropout(jnp.ones([4000, 4]), 0.5, keys)
    assert set(np.unique(values)) == {0.0, 2.0}
    assert float(jnp.ptp(values, axis=1).max()) == 2
    assert abs(float(values.mean()) - 1) < 0.03


def test_from_scratch_the_head_is_almost_zero_and_the_blocks_normal(golden):
    model, _, grid, _ = setup()
    params = jax.jit(lambda key: init_classifier(model, key, grid))(jax.random.key(0))
    reference = golden.classifier_tree("param")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(np.shape, reference)
    assert 1e-5 < float(params["head"]["kernel"].std()) < 3e-5
    assert not params["head"]["bias"].any()
    for name in ("qkv", "proj"):
        leaf = params["encoder"]["blocks"]["attn"][name]
        leaf = leaf["kernel"] if name == "proj" else leaf
        assert 0.018 < float(leaf.std()) < 0.022
        assert not np.allclose(leaf[0], leaf[1])


@pytest.mark.parametrize(
    "size, giga, train", [("s", 57, 339), ("b", 180, 1078), ("l", 597, 3576), ("h", 1192, 7140)]
)
def test_flops_are_the_published_ones(size, giga, train):
    forward, both = finetune_flops(SIZES[size].encoder, tokens=1568, values=1536, classes=400)
    assert forward / 2e9 == pytest.approx(giga, abs=1.1)  # published, rounded upwards or down
    assert both / 1e9 == pytest.approx(train, abs=0.5)


SMALL = [f"--config.clip.{side}=32" for side in ("height", "width")]


@functools.cache
def pretrained_and_fresh():
    """Return the shapes of the parameters of a pre-training and of a classifier."""
    config = load_config("pretrain:tiny,custom", SMALL)
    fine = load_config("finetune:tiny,custom", [*SMALL, "--config.model.classes=5"])
    tasks = pretrain.build_task(config), classify.build_task(fine)
    return tuple(jax.eval_shape(task.init, jax.random.key(0)) for task in tasks)


def test_the_encoder_of_pretraining_fits_and_all_of_it_is_taken():
    rng = np.random.default_rng(0)
    before, fresh = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), pretrained_and_fresh()
    )
    params, table = transfer_encoder(before, fresh)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    for part in ("embed", "blocks"):
        for ours, theirs in zip(
            jax.tree.leaves(params["encoder"][part]),
            jax.tree.leaves(before["encoder"][part]),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    assert len(table.matched) == 15
    assert not table.missing + table.reshaped + table.unexpected
    assert "encoder/norm/scale" in table.left_out and "mask_token" in table.left_out
    assert table.fresh == ("fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel")
    assert "15 matched, 0 missing" in str(table) and "encoder/blocks/attn/qkv" in str(table)


def test_missing_and_reshaped_encoder_weights_end_the_run_with_all_names():
    before, fresh = pretrained_and_fresh()
    blocks = before["encoder"]["blocks"]
    without = {**before, "encoder": {"blocks": {**blocks}}}
    del without["encoder"]["blocks"]["mlp"]
    with pytest.raises(UserError, match="6 of 15 encoder weights are missing") as error:
        transfer_encoder(without, fresh)
    for name in ("encoder/embed/kernel", "encoder/embed/bias", "encoder/blocks/mlp/fc2/kernel"):
        assert name in str(error.value)
    shape = jax.ShapeDtypeStruct((7, 128), jnp.float32)
    other = {**before["encoder"], "embed": {**before["encoder"]["embed"], "kernel": shape}}
    with pytest.raises(UserError, match=r"embed/kernel \(7, 128\) -> \(384, 128\)") as error:
        transfer_encoder({**before, "encoder": other}, fresh)
    assert str(error.value).count("->") == 1


def test_what_nobody_knows_is_listed():
    before, fresh = pretrained_and_fresh()
    _, table = transfer_encoder({**before, "surprise": before["mask_token"]}, fresh)
    assert table.unexpected == ("surprise",)


def test_top1_and_top5_count_ties_in_class_order_and_nan_as_wrong():
    logits = jnp.asarray([[3.0, 1, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0], [jnp.nan] * 6])
    sums = class_sums(logits, jax.nn.one_hot(jnp.asarray([0, 4, 0]), 6), jnp.asarray([0, 4, 0]))
    assert sums["top1"].tolist() == [1, 0, 0]
    assert sums["top5"].tolist() == [1, 1, 0]
    assert float(sums["error"][1]) == pytest.approx(np.log(6))
