"""Augment the two views of contrastive pre-training on the device, as MoCo v3 does its images.

Random resized crop, flip, colour jitter, grey, blur and solarization, each with one draw per clip
that is the same in all frames and comes from the key of the clip. The first view is always blurred
and never solarized.
"""

import jax
import jax.numpy as jnp

from videomae_jax.augment.clip import box_map, crop_box, flip_map, resample
from videomae_jax.augment.randaugment import luma

SIGMA = (0.1, 2.0)  # of the blur, in pixels of the result


def augment_view(
    key: jax.Array,
    video: jax.Array,
    size: jax.Array | None,
    view: jax.Array,
    *,
    height: int,
    width: int,
    min_area: float,
    flip: bool,
    jitter: float,
    colours: tuple[float, float, float, float],
    grey: float,
    blur: tuple[float, float],
    solarize: tuple[float, float],
) -> jax.Array:
    """Augment one clip, uint8 [F, H, W, C]: uint8 [F, height, width, C].

    size: int32 [2], the height and the width that the clip fills from the top left corner, None
    if all. view: int32 [], 0 or 1. min_area: of the crop, as a fraction of the image. flip:
    mirror half of the clips. colours: see `jitter_colours`. jitter, grey, blur, solarize:
    probabilities; of the last two one for each view.
    """
    crop_key, flip_key, jitter_key, grey_key, blur_key, solarize_key = jax.random.split(key, 6)
    size = jnp.asarray(video.shape[1:3]) if size is None else size
    box = crop_box(crop_key, height=size[0], width=size[1], min_area=min_area)
    source = box_map(box, height=height, width=width)
    if flip:
        mirrored = jax.random.bernoulli(flip_key)
        source = source @ jnp.where(mirrored, flip_map(width), jnp.eye(3))
    x = resample(video, source, size, height=height, width=width)
    if jitter:
        which, draw = jax.random.split(jitter_key)
        x = jnp.where(jax.random.bernoulli(which, jitter), jitter_colours(draw, x, colours), x)
    if grey:
        x = jnp.where(jax.random.bernoulli(grey_key, grey), luma(x), x)
    if any(blur):
        which, draw = jax.random.split(blur_key)
        sigma = jax.random.uniform(draw, minval=SIGMA[0], maxval=SIGMA[1])
        blurred = jax.random.bernoulli(which, jnp.asarray(blur)[view])
        x = jnp.where(blurred, gaussian_blur(x, sigma), x)
    # To whole levels, as images have them; also a quarter of the memory.
    levels = jnp.round(x)
    negated = jax.random.bernoulli(solarize_key, jnp.asarray(solarize)[view])
    return jnp.where(negated, solarize_levels(levels), levels).astype(jnp.uint8)


def jitter_colours(
    key: jax.Array, video: jax.Array, colours: tuple[float, float, float, float]
) -> jax.Array:
    """Change brightness, contrast, saturation and hue in random order: float32 [F, H, W, C].

    video: float32 [F, H, W, C] in [0, 255]. colours: the largest change of each; of the first
    three as a fraction, of the hue in turns. Contrast changes around the mean grey of the clip.
    Saturation and hue are those of three channels; other videos keep theirs.
    """
    order_key, *keys = jax.random.split(key, 5)
    brightness, contrast, saturation, hue = (
        jax.random.uniform(key, minval=-most, maxval=most)
        for key, most in zip(keys, colours, strict=True)
    )

    def mix(x, other, change):
        return jnp.clip(other + (1 + change) * (x - other), 0, 255)

    changes = [
        lambda x: mix(x, 0.0, brightness),
        lambda x: mix(x, luma(x).mean(), contrast),
    ]
    if video.shape[-1] == 3:
        import dm_pix  # see `luma`

        changes += [
            lambda x: mix(x, luma(x), saturation),
            lambda x: dm_pix.adjust_hue(x, hue),
        ]

    def apply(x, number):
        return jax.lax.switch(number, changes, x), None

    order = jax.random.permutation(order_key, len(changes))
    return jax.lax.scan(apply, video, order)[0]


def gaussian_blur(video: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur float32 [F, H, W, C] with a Gaussian of this deviation in pixels.

    At the edges, the weights of the pixels inside of the image are scaled to a sum of 1. Pillow
    instead repeats the pixels at the edge, and approximates the Gaussian by boxes.
    """

    def weights(length):
        distance = jnp.arange(length)[:, None] - jnp.arange(length)
        return jax.nn.softmax(-0.5 * jnp.square(distance / sigma), axis=-1)

    x = jnp.einsum("fyxc,ux->fyuc", video, weights(video.shape[2]))
    return jnp.einsum("fyxc,vy->fvxc", x, weights(video.shape[1]))


def solarize_levels(x: jax.Array) -> jax.Array:
    """Return 255 - x where x is at least 128, else x; x: whole levels, 0 to 255."""
    return jnp.where(x < 128, x, 255 - x)
