"""Reconstructions: patches in the right position, and no hidden pixel in the prediction."""

import functools
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from videomae_jax.errors import UserError
from videomae_jax.models.mae import VideoMAE, predicted_patches
from videomae_jax.models.masking import draw_mask, gather_tubes, mask_to_bool
from videomae_jax.models.reconstruct import (
    GREY,
    STATISTICS,
    estimate_statistics,
    reconstruct,
    slide,
    statistics_label,
)
from videomae_jax.models.tokens import patchify, pixel_targets, unpatchify
from videomae_jax.models.vit import Size

PATCH, GRID, CHANNELS = (2, 4, 4), (4, 4, 6), 3
KINDS = ("tube", "random", "frame", "running_cell")
SIZE = Size(width=12, depth=1, heads=2, mlp_width=24)
MODEL = VideoMAE(
    encoder=SIZE, decoder=SIZE, patch=PATCH, mean=(0.5,) * CHANNELS, std=(0.25,) * CHANNELS
)


@functools.cache
def draw(kind, *, clips=2):
    draw_masks = jax.jit(functools.partial(draw_mask, kind=kind, grid=GRID, ratio=0.75))
    return draw_masks(jax.random.split(jax.random.key(3), clips))


def noise(seed, *, clips=2):
    shape = [clips, *(g * p for g, p in zip(GRID, PATCH, strict=True)), CHANNELS]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def hidden_pixels(mask):
    """bool [B, F, H, W, C], True where a pixel is masked."""
    flags = jax.jit(mask_to_bool, static_argnames="count")(mask, count=int(np.prod(GRID)))
    flags = np.repeat(np.asarray(flags)[..., None], np.prod(PATCH) * CHANNELS, -1)
    return np.asarray(unpatchify(flags, GRID, PATCH))


@pytest.fixture(scope="module")
def params():
    """Random parameters, the same for every kind of mask."""
    patches = patchify(noise(0), PATCH)
    return jax.jit(MODEL.init, static_argnums=3)(jax.random.key(0), patches, draw("tube"), GRID)[
        "params"
    ]


@functools.cache
def perfect(*, normalized, statistics):
    """Return the reconstructions, of a video and a mask, by a model that knows the targets."""

    def apply(variables, patches, mask, grid):
        return pixel_targets(predicted_patches(patches, mask), CHANNELS, normalized=normalized)

    model = SimpleNamespace(patch=PATCH, apply=apply)
    how = dict(normalized=normalized, statistics=statistics)
    return jax.jit(lambda video, mask: reconstruct(model, {}, video, mask, **how))


@functools.cache
def jitted(normalized, statistics):
    return jax.jit(
        functools.partial(reconstruct, MODEL, normalized=normalized, statistics=statistics)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_visible_patches_are_the_clips_and_hidden_ones_are_grey_or_predicted(params, kind):
    video, mask = noise(0), draw(kind)
    hidden = hidden_pixels(mask)
    result = jax.device_get(jitted(True, "visible")(params, video, mask))
    np.testing.assert_array_equal(result.masked, np.where(hidden, GREY, video))
    np.testing.assert_array_equal(result.predicted[~hidden], video[~hidden])
    assert (result.predicted[hidden] != video[hidden]).mean() > 0.9
    difference = np.abs(result.predicted.astype(float) - video) / 255
    np.testing.assert_allclose(result.error, difference, atol=1e-6)
    assert not result.error[~hidden].any()


@pytest.mark.parametrize("kind", KINDS)
def test_visible_statistics_see_no_hidden_pixel_and_true_ones_do(params, kind):
    video, mask = noise(0), draw(kind)
    changed = np.where(hidden_pixels(mask), noise(1), video)
    for normalized, statistics, leaks in [
        (True, "visible", False),
        (True, "truth", True),
        (False, "visible", False),
        (False, "truth", False),
    ]:
        predict = jitted(normalized, statistics)
        before, after = (predict(params, v, mask).predicted for v in (video, changed))
        same = np.array_equal(before, after)
        assert same != leaks, (normalized, statistics)


def test_a_model_of_plain_pixels_needs_no_statistics(params):
    video, mask = noise(0), draw("tube")
    one, other = (jitted(False, s)(params, video, mask).predicted for s in STATISTICS)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalized", [True, False])
def test_a_perfect_prediction_gives_the_clip_back(kind, normalized):
    video = noise(0)
    result = jax.device_get(perfect(normalized=normalized, statistics="truth")(video, draw(kind)))
    np.testing.assert_array_equal(result.predicted, video)
    assert not result.sums["error"].any() and result.sums["count"].all()


@pytest.mark.parametrize("kind", KINDS)
def test_visible_statistics_are_exact_where_all_patches_have_the_same(kind):
    tile = np.random.default_rng(2).integers(0, 256, [*PATCH, CHANNELS], np.uint8)
    video = np.tile(tile, [2, *GRID, 1])
    result = perfect(normalized=True, statistics="visible")(video, draw(kind))
    np.testing.assert_array_equal(result.predicted, video)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_weighted_by_the_distance_in_space_and_time(kind):
    video, mask = noise(0), draw(kind)
    patches = patchify(video, PATCH)
    visible = gather_tubes(patches, mask.visible, mask)
    mean, std = estimate_statistics(visible, mask, grid=GRID, channels=CHANNELS)
    hidden = np.asarray(mask_to_bool(mask, count=patches.shape[1]))
    points = np.array(list(itertools.product(*map(range, GRID))))
    for clip in range(2):
        values = np.asarray(patches[clip]).reshape(len(points), -1, CHANNELS) / 255
        seen = values[~hidden[clip]]
        for row, point in enumerate(points[hidden[clip]]):
            distance = np.linalg.norm(points[~hidden[clip]] - point, axis=-1)
            near = dict(weights=distance**-6.0, axis=0)
            expected = np.average(seen.mean(1), **near), np.average(seen.std(1, ddof=1), **near)
            actual = mean[clip, row], std[clip, row]
            np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_labels_say_what_leaks():
    visible, truth = (statistics_label(s, normalized=True) for s in STATISTICS)
    assert "visible patches only" in visible and "leaks" not in visible
    assert "leaks" in truth
    plain = {statistics_label(s, normalized=False) for s in STATISTICS}
    assert len(plain) == 1 and "no patch statistics" in plain.pop()


def test_mistakes_name_what_is_legal():
    video, mask = noise(0), draw("tube")
    with pytest.raises(UserError, match="'hidden' are unknown: use visible or truth"):
        reconstruct(MODEL, {}, video, mask, normalized=True, statistics="hidden")
    with pytest.raises(UserError, match="height 15 is not a multiple .* use 12 or 16"):
        reconstruct(MODEL, {}, video[:, :, 1:], mask, normalized=True, statistics="truth")


@pytest.mark.parametrize("frames", [1, 4, 16])
def test_clips_show_every_frame_once_and_in_order(frames):
    for count in range(1, 50):
        indices, shown = slide(count, frames=frames)
        np.testing.assert_array_equal(indices[shown], np.arange(count))
        assert indices.shape == shown.shape == (-(-count // frames), frames)
        assert indices.min() >= 0 and indices.max() == count - 1
        steps = np.diff(indices, axis=1)
        assert (steps == 1).all() if count >= frames else (steps >= 0).all()


def test_a_short_video_repeats_its_last_frame_and_a_last_clip_is_shifted_back():
    assert slide(3, frames=5)[0].tolist() == [[0, 1, 2, 2, 2]]
    indices, shown = slide(6, frames=4)
    assert indices.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert shown.tolist() == [[True] * 4, [False, False, True, True]]
