"""The detector: what a box sees, and what it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.models.detector import VideoDetector, init_detector
from videomae_jax.models.roi_align import roi_align
from videomae_jax.models.tokens import patch_grid, patchify
from videomae_jax.models.vit import Execution, Size

SIZE = Size(width=32, depth=2, heads=2, mlp_width=64)
SHAPE = (2, 4, 64, 96, 3)  # B, F, H, W, C
PATCH = (2, 8, 8)


@functools.cache
def setup(**fields):
    model = VideoDetector(
        encoder=SIZE,
        patch=PATCH,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        classes=5,
        position_grid=(2, 8, 8),
        **fields,
    )
    grid = patch_grid(SHAPE[1:4], PATCH)
    params = jax.jit(lambda key: init_detector(model, key, (2, 8, 8)))(jax.random.key(0))
    video = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return model, params, patchify(jnp.asarray(video), PATCH), grid


BOXES = np.float32([[[0, 0, 96, 64], [8, 16, 40, 64]], [[50, 3, 61, 9], [0, 0, 1, 1]]])


@functools.cache
def compiled(**fields):
    """Return the function of boxes that gives their features, logits, and their parts of the map.

    The parts are those of `roi_align` [2, 2, 7, 7, 32].
    """
    model, params, patches, grid = setup(**fields)
    encoder = model.build_encoder(cubic_positions=True)

    @jax.jit
    def compute(params, patches, boxes):
        variables = {"params": params}
        features = model.apply(variables, patches, grid, boxes, method="features")
        tokens = encoder.apply({"params": params["encoder"]}, patches, grid)
        steps = tokens.reshape(2, *grid, 32).mean(axis=1)
        parts = roi_align(steps, boxes / 8, size=7, ratio=0, aligned=False)
        return features, model.apply(variables, patches, grid, boxes), parts

    return functools.partial(compute, params, patches)


def test_the_features_of_a_box_are_those_of_its_part_of_the_map():
    features, logits, parts = map(np.asarray, compiled()(BOXES))
    assert features.shape == (2, 2, 32) and features.dtype == np.float32
    np.testing.assert_allclose(features, parts.max(axis=(2, 3)), atol=1e-6)
    assert logits.shape == (2, 2, 5) and logits.dtype == np.float32
    kernel = np.asarray(setup()[1]["head"]["kernel"])
    np.testing.assert_allclose(logits, features @ kernel, atol=1e-6)


def test_the_encoder_has_its_norm_and_starts_as_a_classifier():
    _, params, *_ = setup()
    assert set(params) == {"encoder", "head"}
    assert set(params["encoder"]) == {"embed", "blocks", "norm"}
    assert params["head"]["kernel"].shape == (32, 5) and not params["head"]["bias"].any()
    assert 1e-5 < float(params["head"]["kernel"].std()) < 3e-5
    assert 0.018 < float(params["encoder"]["blocks"]["attn"]["qkv"].std()) < 0.022


def test_boxes_do_not_affect_each_other():
    _, both, _ = compiled()(BOXES)
    _, swapped, _ = compiled()(BOXES[:, ::-1])
    np.testing.assert_array_equal(both, swapped[:, ::-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_are_float32_for_any_compute_dtype(dtype):
    exact, *_ = compiled()(BOXES)
    found, logits, _ = compiled(run=Execution(dtype=jnp.dtype(dtype)))(BOXES)
    assert found.dtype == logits.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=0.1)
