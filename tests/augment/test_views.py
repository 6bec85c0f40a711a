"""The views of contrastive pre-training: one draw for all frames, and nothing where all is off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from videomae_jax.augment.views import (
    augment_view,
    gaussian_blur,
    jitter_colours,
    solarize_levels,
)

OFF = dict(
    height=40, width=48, min_area=1.0, flip=False, jitter=0.0, colours=(0.4, 0.4, 0.2, 0.1),
    grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0),
)  # fmt: skip
ON = OFF | dict(min_area=0.2, flip=True, jitter=0.8, grey=0.2, blur=(1.0, 0.1), solarize=(0.0, 0.2))


def image(seed=0):
    """Return a smooth image, uint8 [40, 48, 3], 4:3 as the largest crop."""
    small = np.random.default_rng(seed).integers(20, 230, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC))


@functools.partial(jax.jit, static_argnames=[*ON, "keys"])
def augmented(number, *, keys, **settings):
    """Return augmented clips of one still image, uint8 [keys, 3, 40, 48, 3]."""
    video = jnp.asarray(np.stack([image()] * 3))
    each = jax.vmap(lambda key: augment_view(key, video, None, number, **settings))
    return each(jax.random.split(jax.random.key(3), keys))


def view(settings, number, keys=16):
    return np.asarray(augmented(number, keys=keys, **settings))


def test_with_everything_off_a_clip_stays():
    # All but those whose random shape of the whole image is another one.
    same = (view(OFF, 0) == image()).all((1, 2, 3, 4))
    assert view(OFF, 0).dtype == np.uint8 and same.mean() > 0.8


def test_all_frames_of_a_clip_get_one_draw_and_clips_differ():
    first, second = (view(ON, number, keys=32) for number in (0, 1))
    for clips in (first, second):
        np.testing.assert_array_equal(clips, clips[:, :1].repeat(3, axis=1))
        assert len({clip.tobytes() for clip in clips}) == 32
    # The views of one key differ by blur and solarization alone.
    assert (first != second).any((1, 2, 3, 4)).sum() > 20
    grey = (first.max(-1) == first.min(-1)).all((1, 2, 3))
    assert 1 <= grey.sum() <= 14


def test_the_second_view_is_seldom_blurred_and_sometimes_solarized():
    def detail(clips):
        return np.abs(np.diff(clips[:, 0].astype(float), axis=2)).mean((1, 2, 3))

    rough = OFF | dict(blur=(1.0, 0.0))
    first, second = (detail(view(rough, number)).mean() for number in (0, 1))
    assert first < 0.95 * second
    bright = view(OFF | dict(solarize=(0.0, 1.0)), 1)
    plain = view(OFF, 1)
    np.testing.assert_array_equal(bright, np.where(plain < 128, plain, 255 - plain))


def test_levels_are_negated_from_128():
    assert solarize_levels(jnp.asarray([0, 127, 128, 255])).tolist() == [0, 127, 127, 0]


def test_a_blur_is_pillow_s_inside_and_keeps_a_flat_image():
    video = jnp.asarray(image()[None], jnp.float32)
    pillow = np.asarray(Image.fromarray(image()).filter(ImageFilter.GaussianBlur(1.5)))
    # Pillow rounds, and its Gaussian is made of boxes.
    ours = gaussian_blur(video, 1.5)[0]
    assert np.abs(ours - pillow.astype(float))[6:-6, 6:-6].max() < 3
    np.testing.assert_allclose(gaussian_blur(jnp.full_like(video, 77.0), 2.0), 77, rtol=1e-5)
    np.testing.assert_allclose(gaussian_blur(video, 0.01), video, atol=1e-3)


def test_a_jitter_of_zero_changes_nothing():
    video = jnp.asarray(image()[None], jnp.float32)
    same = jitter_colours(jax.random.key(0), video, (0.0, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(same, video, atol=1e-3)
    grey = video.mean(-1, keepdims=True)
    assert jitter_colours(jax.random.key(0), grey, (0.4, 0.4, 0.2, 0.1)).shape == grey.shape


def test_a_jitter_of_one_kind_is_pillow_s():
    video = jnp.asarray(image()[None], jnp.float32)
    key = jax.random.key(5)
    _, *keys = jax.random.split(key, 5)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for place, kind in enumerate(kinds):
        colours = tuple(0.4 * (place == other) for other in range(4))
        factor = 1 + float(jax.random.uniform(keys[place], minval=-0.4, maxval=0.4))
        pillow = np.asarray(kind(Image.fromarray(image())).enhance(factor)).astype(float)
        # Pillow rounds the grey that it mixes with.
        assert np.abs(jitter_colours(key, video, colours)[0] - pillow).max() < 2, kind


def test_a_third_of_a_turn_of_hue_moves_red_to_green():
    red = jnp.full([1, 2, 2, 3], 20.0).at[..., 0].set(200.0)
    key = next(
        key
        for key in jax.random.split(jax.random.key(0), 50)
        if 0.3 < jax.random.uniform(jax.random.split(key, 5)[4], minval=-1, maxval=1) < 0.37
    )
    turned = jitter_colours(key, red, (0.0, 0.0, 0.0, 1.0))
    assert turned[0, 0, 0].argmax() == 1 and turned.max() < 201
