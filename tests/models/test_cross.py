"""The decoder with cross-attention: its mathematics, its information flow, its checkpoints."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import relative_error

import videomae_jax as vm
from videomae_jax.config import load_config
from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import Checkpoint, save_checkpoint
from videomae_jax.models.flops import block_flops
from videomae_jax.models.mae import predicted_patches
from videomae_jax.models.masking import draw_mask, mask_to_bool
from videomae_jax.models.vit import Block, Execution, Size
from videomae_jax.tasks import pretrain
from videomae_jax.training.checkpoint import config_from_json
from videomae_jax.training.workdir import check_same_model

GRID = (4, 4, 4)
SMALL = [
    "--config.clip.frames=8",
    "--config.clip.height=32",
    "--config.clip.width=32",
    "--config.mask.ratio=0.75",
    "--config.model.encoder.depth=1",
]


def small(recipe="cross", *more):
    return load_config(f"pretrain:tiny,custom,{recipe}", [*SMALL, *more])


@functools.cache
def parameters(recipe="cross"):
    return pretrain.build_task(small(recipe)).init(jax.random.key(0))


@functools.cache
def masks(clips):
    """Return a mask of the encoder, and one of V2's decoder."""
    keys = jax.random.split(jax.random.key(1), clips)
    return jax.jit(
        lambda keys: (
            draw_mask(keys, "tube", grid=GRID, ratio=0.75),
            draw_mask(keys, "running_cell", grid=GRID, ratio=0.5),
        )
    )(keys)


def make(config, recipe="cross", *, clips=2):
    """Return a model with its parameters, patches and the two masks."""
    model, params = pretrain.build_model(config), parameters(recipe)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (clips, 64, 2 * 8 * 8 * 3), dtype=np.uint8)
    return model, params, patches, *masks(clips)


def block_of_float64(params, x, context, heads):
    """Compute one block: queries from normalized tokens, keys and values from plain ones."""
    p = jax.tree.map(np.float64, params)

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        root = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
        return centred / root * p[name]["scale"] + p[name]["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    q = np.einsum("nd,dhe->hne", norm(x, "norm1"), p["cross"]["qkv"][:, 0])
    q += p["cross"]["q_bias"][:, None]
    k = np.einsum("nd,dhe->hne", context, p["cross"]["qkv"][:, 1])
    v = np.einsum("nd,dhe->hne", context, p["cross"]["qkv"][:, 2]) + p["cross"]["v_bias"][:, None]
    scores = np.einsum("hne,hme->hnm", q, k) / np.sqrt(x.shape[-1] / heads)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("hnm,hme->nhe", weights, v).reshape(x.shape)
    x = x + dense(mixed, p["cross"]["proj"])
    hidden = dense(norm(x, "norm2"), p["mlp"]["fc1"])
    erf = np.vectorize(math.erf)
    return x + dense(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), p["mlp"]["fc2"])


@pytest.mark.parametrize("implementation", [pytest.param("xla", marks=pytest.mark.slow), "chunked"])
def test_a_block_is_that_of_float64(implementation):
    rng = np.random.default_rng(0)
    x, context = (rng.normal(size=(1, n, 32)).astype(np.float32) for n in (400, 9))
    block = Block(Size(32, 1, 4, 48), Execution(attention=implementation))
    params = jax.jit(block.init)(jax.random.key(0), x, None, None, context)["params"]
    # Biases start at zero, which would hide a bias that is added in the wrong position.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), params)
    apply = jax.jit(block.apply, static_argnums=3)
    got = apply({"params": params}, x, None, None, context)[0][0]
    assert relative_error(got, block_of_float64(params, x[0], context[0], heads=4)) < 2e-6


def test_hidden_pixels_do_not_reach_the_prediction():
    model, params, patches, mask, _ = make(small())
    hidden = np.asarray(mask_to_bool(mask, count=64))[..., None]
    predict = jax.jit(lambda patches: model.apply({"params": params}, patches, mask, GRID))
    noise = np.random.default_rng(1).integers(0, 256, patches.shape, dtype=np.uint8)
    np.testing.assert_array_equal(
        predict(patches), predict(np.where(hidden, noise, patches).astype(np.uint8))
    )
    assert (predict(patches) != predict(np.where(hidden, patches, noise).astype(np.uint8))).any()


@pytest.mark.parametrize(("recipe", "alone"), [("cross", True), ("v1", False)])
def test_predicted_tokens_do_not_see_each_other(recipe, alone):
    """With cross-attention, predicting half of them gives the same; with self-attention not."""
    model, params, patches, mask, half = make(small(recipe), recipe)
    apply = jax.jit(lambda decoded: model.apply({"params": params}, patches, mask, GRID, decoded))
    every, some = map(np.asarray, (apply(None), apply(half)))
    ids = np.broadcast_to(np.arange(64), patches.shape[:2])
    numbers = [np.asarray(jax.jit(predicted_patches)(ids, mask, m)) for m in (None, half)]
    for clip in range(len(patches)):
        where = {number: row for row, number in enumerate(numbers[0][clip])}
        both = [(where[n], row) for row, n in enumerate(numbers[1][clip]) if n in where]
        assert 10 < len(both) < 48
        theirs, ours = map(list, zip(*both, strict=True))
        error = relative_error(some[clip, ours], every[clip, theirs])
        assert (error < 1e-5) == alone


@pytest.mark.slow
@pytest.mark.parametrize("dual", [0.0, 0.5])
def test_every_parameter_learns(dual):
    task = pretrain.build_task(small("cross", f"--config.mask.decoder_ratio={dual}"))
    params = parameters()
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8)
    batch = {"video": video, "id": jnp.arange(2), "row": jnp.arange(2)}
    slopes = jax.jit(jax.grad(lambda p: task.train_sums(p, batch, jax.random.key(1))["error"]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes(params)):
        parts = leaf.swapaxes(0, 2) if path_name(path).endswith("qkv") else leaf[None]
        assert all(np.isfinite(part).all() and (part != 0).any() for part in parts), path


@functools.cache
def loss_and_gradient(*overrides):
    model, params, patches, mask, _ = make(small("cross", *overrides))

    def loss(params):
        return jnp.square(model.apply({"params": params}, patches, mask, GRID)).mean()

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))


@pytest.mark.parametrize(
    "run",
    [pytest.param({"remat": "full"}, marks=pytest.mark.slow), {"scan": True, "remat": "dots"}],
)
def test_however_it_is_run_it_computes_the_same(run):
    overrides = [f"--config.run.{key}={value}" for key, value in run.items()]
    for ours, theirs in zip(loss_and_gradient(), loss_and_gradient(*overrides), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("context", [None, 64])
def test_operations_are_those_of_the_compiled_block(context):
    size, tokens = Size(256, 1, 4, 1024), 512
    block = Block(size, Execution(attention="xla"))
    x = jax.ShapeDtypeStruct((1, tokens, 256), jnp.float32)
    other = context and jax.ShapeDtypeStruct((1, context, 256), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), x, None, None, other)
    compiled = jax.jit(block.apply, static_argnums=(2, 3)).lower(params, x, None, None, other)
    counted = compiled.compile().cost_analysis()["flops"]
    # The compiler counts norms, softmax and GELU too.
    assert block_flops(size, tokens, context=context) == pytest.approx(counted, rel=0.05)


def test_the_banner_and_the_name_say_that_it_is_not_the_papers():
    config = small()
    facts = pretrain.build_task(config).summary
    assert "CrossMAE, not the paper's" in facts["decoder"] and "not the paper's" in config.name
    assert "cross" not in pretrain.build_task(small("v1")).summary["decoder"]
    with pytest.raises(UserError, match="decoder_attention 'both' is unknown: use self or cross"):
        pretrain.build_model(small("v1", "--config.model.decoder_attention=both"))


def test_a_run_cannot_resume_with_the_other_decoder():
    with pytest.raises(UserError, match="model.decoder_attention='self', the config says 'cross'"):
        check_same_model({"model.decoder_attention": ("self", "cross")}, workdir="runs/mine")


def test_checkpoints_from_before_there_was_a_choice_are_read():
    old = {"model": {"encoder": {"width": 8}, "decoder": {"width": 4}}}
    assert config_from_json(old).model.decoder_attention == "self"
    assert config_from_json(old).model.positions == "1d"
    assert config_from_json({"optimizer": {"b1": 0.9}}).optimizer.kind == "adamw"
    assert "decoder_attention" not in config_from_json({"model": {"encoder": {"width": 8}}}).model


def test_ours_keep_it_and_others_are_refused(tmp_path):
    config = small()
    model, params, _, _, _ = make(config)
    save_checkpoint(str(tmp_path / "run"), Checkpoint(params, config, (), ""), to="native")
    loaded = vm.load(tmp_path / "run")
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8)
    hidden = np.tile(np.arange(16) >= 4, (2, 1))
    prediction, loss = loaded.reconstruct(video, hidden)
    assert prediction.shape == (2, 4, 12, 384) and np.isfinite(loss)
    other = {**params, "mask_token": params["mask_token"] + 1}
    again = vm.api.Model(Checkpoint(other, config, (), "")).reconstruct(video, hidden)[0]
    assert (again != prediction).any()
    for form in ("mcg", "hf", "safetensors"):
        with pytest.raises(UserError, match="has no decoder with cross-attention.*use native"):
            loaded.save(tmp_path / form, format=form)
        assert not (tmp_path / form).exists()
