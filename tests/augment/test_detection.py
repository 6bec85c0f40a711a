"""Pixels and boxes of detection move together, and colours change as in OpenCV."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.augment.detection import (
    augment,
    clip_boxes,
    extend_boxes,
    fill_outside,
    jitter_boxes,
    shift_colours,
    whole_boxes,
)

NOTHING = dict(flip=False, hue=0, saturation=0, value=0, jitter=(0.0,) * 4)


def rectangle(box, *, height=40, width=64):
    """Return a black clip with a white rectangle, uint8 [2, H, W, 3]."""
    x1, y1, x2, y2 = box
    video = np.zeros([2, height, width, 3], np.uint8)
    video[:, y1:y2, x1:x2] = 255
    return video


def find(frame):
    """Return the box of what is bright in a frame [H, W, 3]."""
    rows, columns = np.nonzero(np.asarray(frame)[..., 0] > 128)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_a_flip_moves_the_rectangle_and_its_box_alike():
    boxes = np.array([[5, 8, 21, 33], [0, 0, 64, 40]], np.float32)
    video = rectangle([5, 8, 21, 33])
    seen = set()
    run = jax.jit(lambda key: augment(key, video, boxes, **NOTHING | dict(flip=True)))
    for seed in range(12):
        pixels, moved = run(jax.random.key(seed))
        for frame in pixels:
            assert find(frame) == moved[0].tolist()
        assert moved[1].tolist() == [0, 0, 64, 40]
        seen.add(tuple(moved[0].tolist()))
    assert seen == {(5, 8, 21, 33), (43, 8, 59, 33)}


def test_nothing_changes_nothing():
    video = np.random.default_rng(0).integers(0, 256, [2, 40, 64, 3], dtype=np.uint8)
    boxes = np.array([[5.5, 8, 21, 33]], np.float32)
    pixels, moved = augment(jax.random.key(0), video, boxes, **NOTHING)
    np.testing.assert_array_equal(pixels, video)
    np.testing.assert_array_equal(moved, boxes)


def shift_by_colorsys(pixel, hue, saturation, value):
    h, s, v = colorsys.rgb_to_hsv(*(float(c) / 255 for c in pixel))
    s, v = np.clip(s + saturation / 255, 0, 1), np.clip(v + value / 255, 0, 1)
    return [255 * c for c in colorsys.hsv_to_rgb((h + hue / 180) % 1, s, v)]


@pytest.mark.parametrize("shift", [(0, 0, 0), (10, 26, 26), (-10, -26, -26), (170, 200, -200)])
def test_colours_shift_as_in_colorsys(shift):
    pixels = np.random.default_rng(0).integers(0, 256, [300, 3])
    corners = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    pixels = np.concatenate([pixels, corners]).astype(np.float32)
    expected = [shift_by_colorsys(pixel, *shift) for pixel in pixels]
    got = shift_colours(jnp.asarray(pixels), *map(jnp.asarray, shift))
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_a_clip_has_one_change_of_colours_within_the_limits():
    red = np.full([2, 4, 4, 3], (200, 50, 50), np.uint8)  # hue 0, saturation 191.25, value 200
    options = NOTHING | dict(hue=10, saturation=26, value=26)
    keys = jax.random.split(jax.random.key(0), 400)
    videos = jax.vmap(lambda key: augment(key, red, jnp.zeros([1, 4]), **options)[0])(keys)
    assert float(jnp.ptp(videos, axis=(1, 2, 3)).max()) == 0
    values = np.array([colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in videos[:, 0, 0, 0]])
    hue = (values[:, 0] * 180 + 90) % 180 - 90
    for found, centre, most in (
        (hue, 0, 10),
        (values[:, 1] * 255, 191.25, 26),
        (values[:, 2] * 255, 200, 26),
    ):
        drawn = np.unique(np.round(found - centre))
        assert drawn.min() == -most and drawn.max() == most and len(drawn) == 2 * most + 1


JITTER = (0.2, 0.1, 0.1, 0.05)


def test_the_sides_of_a_box_move_uniformly_within_their_limits():
    boxes = jnp.tile(jnp.asarray([80.0, 60, 120, 140]), (4000, 1))
    moved = jitter_boxes(jax.random.key(0), boxes, height=200, width=200, jitter=JITTER)
    moves = np.asarray(moved - boxes) / [40, 80, 40, 80]
    low, high = np.array([-0.2, -0.1, -0.1, -0.05]), np.array([0.1, 0.05, 0.2, 0.1])
    assert (moves >= low - 1e-6).all() and (moves <= high + 1e-6).all()
    unit = (moves - low) / (high - low)
    for side in unit.T:
        np.testing.assert_allclose(np.quantile(side, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert np.abs(np.corrcoef(unit.T) - np.eye(4)).max() < 0.06


def test_a_jittered_box_keeps_a_pixel_in_the_clip():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 32, (500, 2, 2)), axis=1).reshape(-1, 4)
    edges = [[0, 0, 0, 0], [32, 32, 32, 32], [0, 5, 0, 9], [-4, 40, -1, 50]]
    boxes = jnp.asarray(np.concatenate([corners, edges]), jnp.float32)
    moved = np.asarray(jitter_boxes(jax.random.key(1), boxes, height=32, width=32, jitter=JITTER))
    assert (moved >= 0).all() and (moved <= 32).all()
    assert (moved[:, 2:] - moved[:, :2] > 0.999).all()


def test_the_draw_of_a_box_does_not_depend_on_the_others():
    boxes = jnp.tile(jnp.asarray([8.0, 6, 12, 14]), (32, 1))
    many, few = (
        jitter_boxes(jax.random.key(0), boxes[:count], height=32, width=32, jitter=JITTER)
        for count in (32, 8)
    )
    np.testing.assert_array_equal(many[:8], few)
    assert len(np.unique(many[:, 0])) == 32


def test_extended_boxes_grow_by_half_on_each_side_and_stay_inside():
    boxes = jnp.asarray([[[10.0, 10, 50, 30], [0, 0, 100, 60]]])
    size = jnp.asarray([[60, 100]])
    extended = extend_boxes(boxes, size, x=0.1, y=0.05)
    np.testing.assert_allclose(extended[0], [[8, 9.5, 52, 30.5], [0, 0, 100, 60]])
    np.testing.assert_array_equal(clip_boxes(boxes, size), boxes)
    np.testing.assert_array_equal(whole_boxes(size), [[[0, 0, 100, 60]]])


def test_outside_of_its_size_a_clip_has_the_mean_colour():
    video = np.random.default_rng(0).integers(0, 256, [2, 3, 8, 10, 3], dtype=np.uint8)
    mean = (0.4, 0.5, 0.6)
    filled = np.asarray(fill_outside(jnp.asarray(video), jnp.asarray([[5, 10], [8, 7]]), mean))
    np.testing.assert_array_equal(filled[0, :, :5], video[0, :, :5])
    np.testing.assert_array_equal(filled[1, :, :, :7], video[1, :, :, :7])
    for outside in (filled[0, :, 5:], filled[1, :, :, 7:]):
        np.testing.assert_allclose(outside / 255, np.broadcast_to(mean, outside.shape), atol=1e-6)
