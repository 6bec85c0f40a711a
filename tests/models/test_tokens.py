"""Patches, targets and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import DATA

from videomae_jax.errors import UserError
from videomae_jax.models.tokens import (
    interpolate_positions,
    normalize_pixels,
    patch_grid,
    patch_statistics,
    patchify,
    pixel_targets,
    pixels_from_targets,
    positions,
    sincos_positions,
    unpatchify,
)

SHAPES = [(2, 4, 32, 48, 3), (1, 6, 14, 28, 1), (1, 2, 16, 16, 7)]


def random_video(shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_is_its_block_of_pixels(shape):
    video, patch = random_video(shape), (2, 7, 14) if shape[2] == 14 else (2, 16, 16)
    grid = patch_grid(shape[1:4], patch)
    tokens = np.asarray(patchify(jnp.asarray(video), patch)).reshape(shape[0], *grid, -1)
    pt, ph, pw = patch
    for t, h, w in np.ndindex(*grid):
        block = video[:, t * pt : (t + 1) * pt, h * ph : (h + 1) * ph, w * pw : (w + 1) * pw]
        np.testing.assert_array_equal(tokens[:, t, h, w], block.reshape(shape[0], -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_unpatchify_undoes_patchify(shape):
    video, patch = jnp.asarray(random_video(shape)), (2, 7, 14) if shape[2] == 14 else (2, 16, 16)
    tokens = patchify(video, patch)
    np.testing.assert_array_equal(unpatchify(tokens, patch_grid(shape[1:4], patch), patch), video)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((16, 220, 224), "height 220 is not a multiple of the patch's 16: use 208 or 224"),
        ((15, 224, 224), "frames 15 is not a multiple of the patch's 2: use 14 or 16"),
        ((16, 224, 8), "width 8 is not a multiple of the patch's 16: use 16"),
    ],
)
def test_a_size_that_does_not_divide_names_the_nearest(size, words):
    with pytest.raises(UserError, match=words):
        patch_grid(size, (2, 16, 16))


def test_pixels_are_normalized_per_channel():
    tokens = jnp.asarray([[0, 0, 255, 255, 51, 102]], jnp.uint8)  # two pixels of three channels
    got = normalize_pixels(tokens, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    np.testing.assert_allclose(got, [[-1, -1, 0.5, 1, -0.2, 0.2]], atol=1e-6)


def test_targets_have_mean_zero_and_unbiased_unit_variance_per_channel():
    tokens = jnp.asarray(random_video((4, 10, 1536)))
    targets = np.asarray(pixel_targets(tokens, 3, normalized=True)).reshape(4, 10, 512, 3)
    np.testing.assert_allclose(targets.mean(2), 0, atol=1e-5)
    np.testing.assert_allclose(targets.var(2, ddof=1), 1, atol=1e-4)
    # So predicting zero costs 511/512, the number every loss is read against.
    assert np.square(targets).mean() == pytest.approx(511 / 512, abs=1e-4)


def test_targets_of_a_flat_patch_are_about_zero_not_nan():
    targets = pixel_targets(jnp.full([1, 1, 1536], 7, jnp.uint8), 3, normalized=True)
    assert (jnp.abs(targets) < 0.01).all()


def test_targets_turn_back_into_pixels():
    tokens = jnp.asarray(random_video((2, 3, 96)))
    targets = pixel_targets(tokens, 3, normalized=True)
    pixels = pixels_from_targets(targets, *patch_statistics(tokens, 3))
    np.testing.assert_allclose(255 * pixels, tokens, atol=1e-3)


def test_positions_are_the_textbook_sines():
    table = sincos_positions(1568, 768)
    assert table.shape == (1568, 768) and table.dtype == np.float32
    for n, j in [(0, 0), (0, 1), (1567, 2), (803, 767)]:
        angle = n / 10000 ** (2 * (j // 2) / 768)
        assert table[n, j] == pytest.approx(np.cos(angle) if j % 2 else np.sin(angle), abs=1e-6)


def test_separable_positions_have_columns_for_each_axis():
    grid, width = (4, 6, 5), 64
    table = positions(grid, width, kind="3d", source=None)
    assert table.shape == (4 * 6 * 5, width) and table.dtype == np.float32
    axes = np.split(table.reshape(*grid, width), [16, 40], axis=-1)  # of 16, 24 and 24 columns
    for axis, part in enumerate(axes):
        alone = np.moveaxis(part, axis, 0)[:, 0, 0]
        np.testing.assert_array_equal(alone, sincos_positions(grid[axis], alone.shape[1]))
        others = tuple(a for a in range(3) if a != axis)
        assert not np.ptp(part, axis=others).any()


@pytest.mark.parametrize("width", [8, 24, 384, 1408])
def test_separable_positions_of_any_width_tell_all_places_apart(width):
    table = positions((8, 14, 14), width, kind="3d", source=None)
    assert table.shape == (8 * 14 * 14, width)
    assert len(np.unique(table.round(4), axis=0)) == len(table)


def test_separable_positions_are_interpolated_along_their_axes():
    got = positions((8, 6, 6), 32, kind="3d", source=(4, 6, 6)).reshape(8, 6, 6, 32)
    own = positions((8, 6, 6), 32, kind="3d", source=None).reshape(8, 6, 6, 32)
    np.testing.assert_allclose(got[..., 8:], own[..., 8:], atol=1e-6)  # rows and columns
    assert np.abs(got - own)[..., :8].max() > 0.1


def test_interpolated_positions_agree_with_jax_resize_and_keep_their_own_grid():
    table, source, grid = sincos_positions(4 * 6 * 5, 16), (4, 6, 5), (8, 9, 7)
    np.testing.assert_array_equal(interpolate_positions(table, source, source), table)
    for same in (source, None):
        np.testing.assert_array_equal(positions(source, 16, source=same), table)
    reference = jax.image.resize(
        jnp.asarray(table).reshape(*source, 16), (*grid, 16), "linear", antialias=False
    )
    got = interpolate_positions(table, source, grid)
    np.testing.assert_allclose(got, np.asarray(reference).reshape(-1, 16), atol=1e-5)
    np.testing.assert_array_equal(positions(grid, 16, source=source), got)


def test_cubic_positions_are_those_of_pytorch():
    """The file: F.interpolate(mode="bicubic", align_corners=False) of a 14 x 14 table."""
    reference = np.load(DATA / "cubic_positions.npz")["positions"]
    got = positions((1, 16, 29), 4, source=(1, 14, 14), cubic=True)
    assert got.shape == reference.shape == (16 * 29, 4)
    np.testing.assert_allclose(got, reference, atol=2e-6)
    linear = positions((1, 16, 29), 4, source=(1, 14, 14))
    assert np.abs(linear - reference).max() > 0.1


def test_cubic_positions_of_their_own_grid_are_the_table():
    table = sincos_positions(2 * 6 * 5, 16)
    same = interpolate_positions(table, (2, 6, 5), (2, 6, 5), cubic=True)
    np.testing.assert_array_equal(same, table)
    # Time does not change where only the image does.
    wide = interpolate_positions(table, (2, 6, 5), (2, 6, 9), cubic=True)
    one = interpolate_positions(table.reshape(2, 30, 16)[1], (1, 6, 5), (1, 6, 9), cubic=True)
    np.testing.assert_array_equal(wide.reshape(2, -1, 16)[1], one)
