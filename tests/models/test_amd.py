"""AMD's features: where they are taken, what predicts them, and their errors on any mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.sharding import batch_sharding, make_mesh, path_name
from videomae_jax.models.amd import (
    FeatureHeads,
    Features,
    add_errors,
    encode_and_decode,
    feature_errors,
    halves,
    split_features,
    teacher_features,
)
from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.flops import block_flops, feature_flops
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.masking import draw_mask, gather_tubes
from videomae_jax.models.vit import SIZES, Block, Execution, Size, apply_parts

GRID, CLIPS = (2, 4, 4), 3
RUN = Execution(scan=True)  # compiles fast
FIELDS = dict(patch=(2, 8, 8), mean=(0.5,), std=(0.25,), run=RUN)
STUDENT = VideoMAE(encoder=Size(16, 3, 2, 32), decoder=Size(8, 1, 2, 16), **FIELDS)
TEACHER = VideoModel(encoder=Size(24, 4, 2, 48), **FIELDS)
HEADS = FeatureHeads(Size(24, 2, 2, 48), RUN)


@functools.cache
def inputs():
    """Return uint8 patches, the mask of the student (2 of 16 patches) and the teacher's (4)."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (CLIPS, math.prod(GRID), 128), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(1), CLIPS)
    draw = jax.jit(draw_mask, static_argnames=("kind", "grid", "ratio"))
    return patches, *(draw(keys, "tube", grid=GRID, ratio=r) for r in (0.9, 0.75))


@functools.cache
def parameters():
    """Return those of the student, the heads and the teacher, far from their first values."""
    patches, mask, wider = inputs()
    tokens = [jnp.zeros([CLIPS, 4, 16])] * 2
    encoder = TEACHER.build_encoder(final_norm=False)
    trees = (
        jax.eval_shape(lambda: STUDENT.init(jax.random.key(0), patches, mask, GRID))["params"],
        jax.eval_shape(lambda: HEADS.init(jax.random.key(0), tokens, mask, wider, GRID))["params"],
        jax.eval_shape(lambda: encoder.init(jax.random.key(0), patches, GRID))["params"],
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(x.dtype), trees)


@jax.jit
def compute(student, heads, teacher, patches):
    """Return the predicted pixels, the student's tokens, and predicted and wanted features."""
    _, mask, wider = inputs()
    prediction, tokens = STUDENT.apply(
        {"params": student}, patches, mask, GRID, None, method=encode_and_decode
    )
    predicted = HEADS.apply({"params": heads}, tokens, mask, wider, GRID)
    wanted = teacher_features(TEACHER, teacher, patches, mask, wider, GRID)
    return prediction, tokens, predicted, wanted


class Stack(nn.Module):
    run: Execution

    @nn.compact
    def __call__(self, x):
        return apply_parts(x, Size(16, 3, 2, 32), self.run, (1, 2))


@pytest.mark.parametrize("scan", [False, True])
def test_the_parts_of_a_stack_are_its_blocks_one_after_the_other(scan):
    x = jax.random.normal(jax.random.key(0), (2, 7, 16))
    params = jax.jit(Stack(RUN).init)(jax.random.key(1), x)["params"]
    half, full = jax.jit(Stack(Execution(scan=scan)).apply)({"params": params}, x)
    block, tokens = jax.jit(Block(Size(16, 1, 2, 32), RUN).apply), [x]
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        tokens.append(block({"params": one}, tokens[-1], None)[0])
    np.testing.assert_allclose(half, tokens[1], atol=1e-5)
    np.testing.assert_allclose(full, tokens[3], atol=1e-5)


def test_features_are_split_by_what_the_student_sees():
    patches, mask, wider = inputs()
    ids = jnp.broadcast_to(jnp.arange(32)[:, None], (CLIPS, 32, 1))
    found = jax.jit(split_features)(gather_tubes(ids, wider.visible, wider), mask, wider)
    np.testing.assert_array_equal(found.common, gather_tubes(ids, mask.visible, mask))
    assert found.unseen.shape == (CLIPS, 4, 1)
    for clip in range(CLIPS):
        hidden = set(np.asarray(gather_tubes(ids, mask.masked, mask))[clip, :, 0].tolist())
        assert set(np.asarray(found.unseen)[clip, :, 0].tolist()) <= hidden


@pytest.mark.slow
def test_a_teacher_has_the_features_of_its_blocks():
    patches, mask, wider = inputs()
    half, full = compute(*parameters(), patches)[3]
    assert half.common.shape == (CLIPS, 4, 24) and full.unseen.shape == (CLIPS, 4, 24)
    apply = jax.jit(TEACHER.build_encoder(final_norm=False).apply, static_argnums=2)
    whole = apply({"params": parameters()[2]}, patches, GRID, mask=wider)
    wanted = split_features(whole, mask, wider)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), full, wanted)


def test_the_student_predicts_pixels_as_before():
    patches, mask, _ = inputs()
    apply = jax.jit(STUDENT.apply, static_argnums=3)
    plain = apply({"params": parameters()[0]}, patches, mask, GRID)
    same, (half, full), _, _ = compute(*parameters(), patches)
    np.testing.assert_allclose(same, plain, atol=1e-5)
    assert halves(3) == (1, 2) and half.shape == full.shape == (CLIPS, 4, 16)
    assert np.abs(half - full).max() > 0.1


@pytest.mark.slow
def test_every_parameter_of_the_heads_learns_and_mask_tokens_too():
    """Those of the reference are no parameters, and keep their first values."""
    student, heads, teacher = parameters()

    def loss(student, heads):
        *_, predicted, wanted = compute(student, heads, teacher, inputs()[0])
        return sum(error.sum() for error in feature_errors(predicted, wanted).values())

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))(student, heads)
    names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(slopes[1])}
    assert {"half/mask_token", "full/mask_token", "half/projection/kernel"} <= names
    assert "half/projection/bias" not in names and "full/blocks/mlp/fc1/kernel" in names
    for tree in (slopes[1], slopes[0]["encoder"]["blocks"]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path_name(path)


def test_a_generated_feature_is_made_of_what_the_student_sees():
    """Of the positions of the others, and never of their pixels."""
    patches, mask, _ = inputs()
    hidden = np.ones([CLIPS, 2, 16, 1], bool)
    for clip, ids in enumerate(mask.visible):
        hidden[clip, :, ids] = False
    other = np.where(hidden.reshape(CLIPS, 32, 1), 255 - patches, patches)
    predicted, same = (compute(*parameters(), pixels)[2] for pixels in (patches, other))
    jax.tree.map(np.testing.assert_array_equal, predicted, same)
    half = predicted[0].unseen
    assert np.abs(half[:, 0] - half[:, 1]).max() > 0.01


def test_errors_are_means_over_tokens_channels_and_depths():
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(2, 2, CLIPS, 10, 5)).astype(np.float32)
    ours, theirs = ([Features(x[:, :4], x[:, 4:]) for x in side] for side in arrays)
    found = feature_errors(ours, theirs)
    square = np.square(arrays[0].astype(float) - arrays[1])
    np.testing.assert_allclose(found["direct"], square[:, :, :4].mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["generated"], square[:, :, 4:].mean((0, 2, 3)), rtol=1e-6)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (ours, theirs))
    assert feature_errors(*half)["direct"].dtype == jnp.float32


def test_float64_one_device_is_eight_and_parts_add_up():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        ours, theirs = rng.normal(size=(2, 2, 16, 10, 5))
        pixels = {"error": rng.uniform(size=16), "count": np.full(16, 28.0)}

        def sums(ours, theirs, pixels):
            sides = [[Features(x[:, :4], x[:, 4:]) for x in side] for side in (ours, theirs)]
            found = add_errors(pixels, feature_errors(*sides))
            return jax.tree.map(jnp.sum, found)

        def loss(ours, theirs, pixels):
            found = sums(ours, theirs, pixels)
            return found["error"] / found["count"]

        step = jax.jit(jax.value_and_grad(loss))
        one, slopes = step(ours, theirs, pixels)
        assert one.dtype == jnp.float64
        mesh = make_mesh(dict(data=4, fsdp=2, tensor=1))
        with jax.set_mesh(mesh):
            clips = NamedSharding(mesh, P(None, ("data", "fsdp")))
            split = [jax.device_put(x, clips) for x in (ours, theirs)]
            eight, others = step(*split, jax.device_put(pixels, batch_sharding(mesh)))
        np.testing.assert_allclose(eight, one, rtol=1e-14)
        np.testing.assert_allclose(others, slopes, rtol=1e-13)
        # Three unequal parts.
        found = [
            jax.jit(sums)(ours[:, a:b], theirs[:, a:b], {k: v[a:b] for k, v in pixels.items()})
            for a, b in ((0, 3), (3, 9), (9, 16))
        ]
        total = jax.tree.map(lambda *parts: sum(parts), *found)
        np.testing.assert_allclose(total["error"] / total["count"], one, rtol=1e-14)
        terms = total["pixels"] + total["direct"] + total["generated"]
        np.testing.assert_allclose(terms, total["error"], rtol=1e-14)


def test_the_operations_of_the_heads():
    student, teacher = SIZES["b"].encoder, SIZES["l"].encoder
    generator = Size(1024, 2, 16, 4096)
    # Two projections of 160 tokens, and four blocks for 392.
    wanted = 2 * 2 * 160 * 768 * 1024 + 4 * block_flops(teacher, 392)
    assert feature_flops(student, generator, visible=160, seen=392) == wanted
