"""Sizes, other inputs than 16 x 224 x 224, and the closed-form counts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from videomae_jax.config import load_config
from videomae_jax.models.flops import pretrain_flops
from videomae_jax.models.vit import (
    SIZES,
    Affine,
    Block,
    Execution,
    LayerNorm,
    Size,
    apply_blocks,
    gelu,
    standardize,
)
from videomae_jax.tasks import pretrain

PUBLISHED = {"s": 22, "b": 87, "l": 305, "h": 633}  # M, with a head of 400 classes


def parameters(size, *overrides):
    config = load_config(f"pretrain:{size},k400", overrides)
    return jax.eval_shape(pretrain.build_task(config).init, jax.random.key(0))


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts(size):
    params, width = parameters(size), SIZES[size].encoder.width
    encoder = sum(math.prod(x.shape) for x in jax.tree.leaves(params["encoder"]))
    depth = SIZES[size].encoder.depth
    # qkv, proj and MLP matrices; q, v, proj, MLP biases and two norms; embedding; last norm.
    blocks = depth * (12 * width**2 + (2 + 1 + 5 + 4) * width)
    assert encoder == blocks + (1536 * width + width) + 2 * width
    assert encoder + 400 * width + 400 == pytest.approx(PUBLISHED[size] * 1e6, rel=0.006)


def test_sizes_of_the_table():
    assert SIZES["h"].encoder.width // SIZES["h"].encoder.heads == 80
    assert SIZES["s"].encoder.heads == 6
    assert (SIZES["g"].encoder.mlp_width, SIZES["g"].patch) == (6144, 14)
    for size in SIZES.values():
        for part in (size.encoder, size.decoder):
            assert part.width % part.heads == 0


@pytest.mark.parametrize(
    ("size", "depth", "forward", "train"),
    # From the published closed form, which embeds all 1,568 tokens; we embed 160.
    [("s", 4, 23.1, 67.4), ("b", 4, 70.9, 208.9), ("l", 12, 285, 851), ("h", 12, 475, 1420)],
)
def test_flops_of_the_closed_form(size, depth, forward, train):
    model = SIZES[size]
    decoder = dataclasses.replace(model.decoder, depth=depth)
    got = pretrain_flops(model.encoder, decoder, visible=160, decoded=1408, values=1536)
    hidden_embedding = 2 * 1408 * 1536 * model.encoder.width
    assert (got[0] + hidden_embedding) / 1e9 == pytest.approx(forward, rel=3e-3)
    assert (got[1] + 2 * hidden_embedding) / 1e9 == pytest.approx(train, rel=3e-3)


@pytest.mark.parametrize(
    ("frames", "height", "width", "channels", "kind"),
    [
        (6, 24, 16, 1, "random"),
        pytest.param(8, 16, 16, 4, "frame", marks=pytest.mark.slow),
        pytest.param(2, 32, 32, 2, "running_cell", marks=pytest.mark.slow),
    ],
)
def test_any_frames_size_and_channels(frames, height, width, channels, kind):
    config = load_config(
        "pretrain:tiny,custom",
        [
            f"--config.clip.frames={frames}",
            f"--config.clip.height={height}",
            f"--config.clip.width={width}",
            f"--config.model.mean={(0.5,) * channels}",
            f"--config.model.std={(0.25,) * channels}",
            f"--config.mask.kind={kind}",
            "--config.mask.ratio=0.5",
            "--config.model.encoder.depth=1",
            "--config.model.decoder.depth=1",
        ],
    )
    task = pretrain.build_task(config)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, frames, height, width, channels), dtype=np.uint8)
    batch = {"video": jnp.asarray(video), "id": jnp.arange(2)}
    params = task.init(jax.random.key(0))
    metrics = task.summarize(jax.jit(task.train_sums)(params, batch, jax.random.key(1)))
    assert np.isfinite(metrics["loss"])
    assert float(metrics["r2"]) == pytest.approx(1 - float(metrics["vs_zero"]), abs=1e-4)


@functools.cache
def small_evaluation(*overrides):
    """Return the compiled evaluation of a small model as a function of a batch, and a video."""
    config = load_config(
        "pretrain:tiny,custom",
        [
            "--config.clip.height=32",
            "--config.clip.width=32",
            "--config.model.encoder.depth=1",
            "--config.model.decoder.depth=1",
            *overrides,
        ],
    )
    task = pretrain.build_task(config)
    rng = np.random.default_rng(0)
    params = jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.1).astype(x.dtype), params)
    video = rng.integers(0, 256, (2, 16, 32, 32, 3), dtype=np.uint8)
    return functools.partial(jax.jit(task.eval_sums), params), video


def test_the_mask_of_a_clip_follows_its_id_and_the_step_not_its_row():
    evaluate, video = small_evaluation()
    one = evaluate({"video": video, "id": jnp.asarray([5, 9])})["error"]
    swapped = evaluate({"video": video[::-1], "id": jnp.asarray([9, 5])})["error"]
    np.testing.assert_allclose(one, swapped[::-1], rtol=1e-6)
    other = evaluate({"video": video, "id": jnp.asarray([6, 9])})["error"]
    assert one[0] != other[0] and one[1] == other[1]


@pytest.mark.parametrize("change", ["position_grid=(8,28,28)", "positions=3d"])
def test_other_positions_give_another_prediction(change):
    def errors(*overrides):
        evaluate, video = small_evaluation(*overrides)
        return evaluate({"video": video, "id": jnp.asarray([5, 9])})["error"]

    assert (errors() != errors(f"--config.model.{change}")).all()


@pytest.mark.parametrize("taken_in", [False, True], ids=["alone", "in the next layer"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_norm_and_its_gradients_are_those_of_flax(dtype, taken_in):
    keys = jax.random.split(jax.random.key(0), 4)
    # Far from zero, where a variance in one pass would have lost its digits.
    x = (300 + jax.random.normal(keys[0], (2, 7, 48))).astype(dtype)
    scale, bias, more = jax.random.normal(keys[1], (3, 48))
    kernel = jax.random.normal(keys[2], (48, 48)) / 7
    grad = jax.random.normal(keys[3], x.shape)
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32)

    def reference(x, scale, bias, kernel, more):
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x) @ kernel + more

    def ours(x, scale, bias, kernel, more):
        params = {"params": {"scale": scale, "bias": bias}}
        if not taken_in:
            return LayerNorm(jnp.float32).apply(params, x) @ kernel + more
        kernel, more = Affine(48).apply(params, kernel, more)
        return standardize(x, jnp.float32) @ kernel + more

    given = (x, scale, bias, kernel, more)

    @functools.partial(jax.jit, static_argnums=0)
    def differentiate(function, *given):
        out, pull = jax.vjp(function, *given)
        return out, pull(grad)

    mine, slopes = differentiate(ours, *given)
    other, their_slopes = differentiate(reference, *given)
    np.testing.assert_allclose(mine, other, atol=1e-4)
    for mine, other in zip(slopes, their_slopes, strict=True):
        assert mine.dtype == other.dtype
        bound = 1e-2 if mine.dtype == jnp.bfloat16 else 1e-4
        np.testing.assert_allclose(np.float32(mine), np.float32(other), atol=bound, rtol=bound)


@pytest.mark.parametrize(("cross", "last"), [(False, None), (False, 3), (True, None)])
def test_a_block_is_its_norms_attention_and_mlp_one_after_the_other(cross, last):
    size, run = Size(24, 1, 2, 48), Execution()
    keys = iter(jax.random.split(jax.random.key(0), 40))
    x = jax.random.normal(next(keys), (2, 5, 24))
    context = jax.random.normal(next(keys), (2, 4, 24)) if cross else None
    block = Block(size, run)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, None, None, context))
    params = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape) / 4, shapes)["params"]
    apply = jax.jit(block.apply, static_argnums=3)
    out, _ = apply({"params": params}, x, None, last, context)

    def norm(name, x):
        unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return unit * p[name]["scale"] + p[name]["bias"]

    p = jax.tree.map(np.float64, params)
    attn, x = p["cross" if cross else "attn"], np.float64(x)
    source = norm("norm1", x) if context is None else np.float64(context)
    q, k, v = (
        np.einsum("bnd,dhe->bhne", tokens, attn["qkv"][:, part])
        for part, tokens in enumerate((norm("norm1", x), source, source))
    )
    q, v = q + attn["q_bias"][:, None], v + attn["v_bias"][:, None]
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(12))
    mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
    x = x + mixed @ attn["proj"]["kernel"] + attn["proj"]["bias"]
    hidden = norm("norm2", x) @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"]
    hidden *= 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    x = x + hidden @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]
    np.testing.assert_allclose(out, x[:, -out.shape[1] :], atol=2e-5)
    assert out.shape[1] == (last or 5)


def test_the_gelu_and_its_derivative_are_those_of_float64():
    x = np.linspace(-9, 9, 20_001, dtype=np.float32)
    out, pull = jax.vjp(gelu, jnp.asarray(x))
    wide = np.float64(x)
    integral = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in wide])
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    assert np.abs(out - wide * integral).max() < 1e-6
    assert np.abs(pull(jnp.ones_like(out))[0] - (integral + wide * density)).max() < 1e-6


class Stack(nn.Module):
    run: Execution
    last: int | None

    @nn.compact
    def __call__(self, x):
        return apply_blocks(x, Size(16, 3, 2, 32), self.run, last=self.last)


@functools.cache
def stack_slopes(run, last):
    """Return parameters, input, loss of the last five tokens, and its gradient."""
    model, x = Stack(run, last), jax.random.normal(jax.random.key(0), [2, 9, 16])
    params = jax.jit(Stack(Execution(), None).init)(jax.random.key(1), x)

    def loss(params):
        return jnp.sin(model.apply(params, x)[:, -5:]).sum()

    return params, x, *jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("scan", "remat"),
    # Fast: each value of each option once.
    [
        (False, "none"),
        (True, "full"),
        pytest.param(False, "full", marks=pytest.mark.slow),
        pytest.param(True, "none", marks=pytest.mark.slow),
    ],
)
def test_the_last_tokens_alone_are_the_last_of_all(scan, remat):
    params, x, wanted, slopes = stack_slopes(Execution(), None)
    run = Execution(scan=scan, remat=remat)
    assert jax.eval_shape(Stack(run, 5).apply, params, x).shape == (2, 5, 16)
    *_, got, ours = stack_slopes(run, 5)
    assert abs(got - wanted) < 1e-5
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(slopes), strict=True):
        assert np.abs(a - b).max() < 2e-5
