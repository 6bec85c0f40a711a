"""RoIAlign against stated values, a loop over its definition, and simple maps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.models.roi_align import roi_align

BOTH = pytest.mark.parametrize("aligned", [False, True])


compiled = jax.jit(roi_align, static_argnames=("size", "ratio", "aligned"))


def align(features, boxes, **options):
    """Return `roi_align` of one map [H, W, C] and its boxes [M, 4]."""
    options = dict(size=7, ratio=0, aligned=True) | options
    features, boxes = np.asarray([features], np.float32), np.asarray([boxes], np.float32)
    return np.asarray(compiled(features, boxes, **options))[0]


def by_definition(features, box, *, size, ratio, aligned):
    """Return the samples of one box, averaged one by one in float64."""
    height, width, channels = features.shape
    x1, y1, x2, y2 = (float(v) for v in box)
    shift = 0.5 if aligned else 0.0
    extents = [y2 - y1, x2 - x1]
    if not aligned:
        extents = [max(e, 1.0) for e in extents]
    counts = [ratio or math.ceil(e / size) for e in extents]

    def read(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return np.zeros(channels)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        upper = (1 - dx) * features[top, left] + dx * features[top, right]
        lower = (1 - dx) * features[bottom, left] + dx * features[bottom, right]
        return (1 - dy) * upper + dy * lower

    out = np.zeros([size, size, channels])
    for p, q in np.ndindex(size, size):
        for i, j in np.ndindex(*counts):
            y = y1 - shift + (p + (i + 0.5) / counts[0]) * extents[0] / size
            x = x1 - shift + (q + (j + 0.5) / counts[1]) * extents[1] / size
            out[p, q] += read(y, x)
    return out / max(math.prod(counts), 1)


STATED = {  # of the map 0 ... 15, boxes in pixels of cells of 16
    (8, 8, 40, 56): ([[6, 7], [11.75, 12.75]], [[3.5, 4.5], [9.5, 10.5]]),
    (0, 0, 64, 64): ([[5, 6.75], [12, 13.75]], [[2.5, 4.5], [10.5, 12.5]]),
    (20, 20, 21, 21): ([[7.5, 8], [9.5, 10]], [[3.8281, 3.8594], [3.9531, 3.9844]]),
}


@pytest.mark.parametrize("box", STATED)
def test_stated_values(box):
    features = np.arange(16).reshape(4, 4, 1)
    for aligned, values in zip((False, True), STATED[box], strict=True):
        got = align(features, [np.array(box) / 16], size=2, aligned=aligned)
        np.testing.assert_allclose(got[0, ..., 0], values, atol=5e-5)
    for aligned, values in zip((False, True), STATED[8, 8, 40, 56], strict=True):
        box = np.array([8, 8, 40, 56]) / 16
        got = align(features, [box], size=2, ratio=2, aligned=aligned)
        np.testing.assert_allclose(got[0, ..., 0], values, atol=1e-6)


@BOTH
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("shape", [(14, 14), (16, 29), (9, 5)])
def test_random_boxes_are_as_defined(shape, ratio, aligned):
    rng = np.random.default_rng(0)
    height, width = shape
    features = rng.normal(size=(height, width, 2))
    corners = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1)  # [box, low or high, x or y]
    corners[:2] = [[0, 0], [1, 1]], [[0.5, 0.5], [0.51, 0.5]]
    boxes = (corners * [width, height]).reshape(20, 4).astype(np.float32)
    options = dict(size=7, ratio=ratio, aligned=aligned)
    expected = [by_definition(features, box, **options) for box in boxes]
    np.testing.assert_allclose(align(features, boxes, **options), expected, atol=2e-5)


def test_a_box_of_whole_cells_has_as_many_samples_when_compiled():
    """21 cells in 7 are 3 samples each; compiled, 21 / 7 may be a little more than 3."""
    features = np.random.default_rng(0).standard_normal([16, 29, 2])
    box = [2, 1, 23, 13]
    expected = by_definition(features, box, size=7, ratio=0, aligned=True)
    np.testing.assert_allclose(align(features, [box])[0], expected, atol=1e-5)


@BOTH
def test_a_constant_map_stays_constant(aligned):
    boxes = [[0, 0, 14, 14], [2.3, 4.1, 9.7, 5.2], [13, 13, 14, 14], [5, 5, 5.01, 5.01]]
    np.testing.assert_allclose(align(np.full([14, 14, 3], 2.5), boxes, aligned=aligned), 2.5, 1e-6)


def test_a_ramp_gives_the_centres_of_the_output_cells():
    y, x = np.mgrid[:20, :30]
    ramp = np.stack([x + 0.5, y + 0.5], axis=-1)  # the value of a map cell at its centre
    box = np.array([3.2, 4.4, 21.0, 12.8])
    got = align(ramp, [box])[0]
    steps = (np.arange(7) + 0.5) / 7
    np.testing.assert_allclose(got[..., 0], np.tile(3.2 + steps * 17.8, (7, 1)), atol=1e-4)
    np.testing.assert_allclose(got[..., 1].T, np.tile(4.4 + steps * 8.4, (7, 1)), atol=1e-4)
    # Without alignment it reads half a cell further to the right and bottom.
    np.testing.assert_allclose(align(ramp, [box], aligned=False)[0], got + 0.5, atol=1e-4)


def test_the_box_of_the_whole_map_is_plain_pooling():
    features = np.random.default_rng(1).normal(size=(14, 14, 4))
    pooled = features.reshape(7, 2, 7, 2, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(align(features, [[0, 0, 14, 14]])[0], pooled, atol=1e-6)


@BOTH
def test_the_gradient_is_that_of_finite_differences(aligned):
    rng = np.random.default_rng(2)
    features = jnp.asarray(rng.normal(size=(1, 6, 8, 2)), jnp.float32)
    boxes = jnp.asarray([[[0.4, 1.2, 6.3, 4.9], [0, 0, 8, 6], [3, 3, 3, 3]]])
    weights = rng.normal(size=(1, 3, 3, 3, 2))

    @jax.jit
    def total(features):
        got = roi_align(features, boxes, size=3, ratio=0, aligned=aligned)
        return (got * weights).sum()

    grad = jax.grad(total)(features)
    for _ in range(5):
        direction = jnp.asarray(rng.normal(size=features.shape), jnp.float32)
        # The function is linear, so a difference of any length is exact but for rounding.
        difference = (total(features + direction) - total(features - direction)) / 2
        assert float((grad * direction).sum()) == pytest.approx(float(difference), abs=1e-4)


def test_boxes_of_size_zero_are_finite():
    features = np.random.default_rng(3).normal(size=(14, 14, 2))
    for aligned in (False, True):
        assert np.isfinite(align(features, np.zeros([2, 4]), aligned=aligned)).all()
    assert not align(features, [[3, 3, 3, 3]]).any()
