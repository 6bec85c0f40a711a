"""Augment the clips of fine-tuning on the device, between the reader and the model.

RandAugment, random resized crop, flip and random erasing, each with one draw per clip that is
the same in all frames; then mixup or cutmix within small groups of clips. The draws of a clip
come from the key of the clip and those of a group from the key of the group, so the result is
the same in any batch and on any number of devices. All shapes are static, and no data moves
between devices.

What a clip needs is decided in branches, of which `map_clips` may compute only one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomae_jax.augment.randaugment import (
    Draws,
    change_pixels,
    compose_maps,
    draw_operations,
)
from videomae_jax.errors import UserError

GREY = 128.0  # fills what a map moves in from outside the image
ATTEMPTS = 10  # boxes to draw before using a fallback
CROP_ASPECT = (3 / 4, 4 / 3)  # width / height
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)


class Box(NamedTuple):
    """A rectangle in pixels, float32 [] with integer values; of size 0 if none was found.

    x, y: the top left corner.
    """

    x: jax.Array
    y: jax.Array
    width: jax.Array
    height: jax.Array


class Plan(NamedTuple):
    """What happens to one clip."""

    draws: Draws  # of RandAugment
    source: jax.Array  # float32 [3, 3], the map of `resample`
    erased: Box  # of size 0 for nothing
    noise_key: jax.Array


def augment(
    key: jax.Array,
    video: jax.Array,
    size: jax.Array | None = None,
    *,
    height: int,
    width: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    operations: int,
    magnitude: float,
    deviation: float,
    min_area: float,
    flip: bool,
    erase: float,
    map_clips: Callable[[Callable], Callable] = jax.vmap,
) -> jax.Array:
    """Augment clips, uint8 [B, F, H, W, C]: float32 [B, F, height, width, C], about [0, 255].

    key: typed keys [B]. size: int32 [B, 2], the height and the width that each clip fills from
    the top left corner, with zeros outside; None if all fill it. mean, std: the pixel statistics
    of the model. operations, magnitude, deviation: of RandAugment, see `draw_operations`; 0
    operations turns it off. min_area: of the crop, as a fraction of the image. flip: mirror half
    of the clips. erase: the probability of random erasing, whose noise is not clipped to
    [0, 255]. map_clips: `jax.vmap`, or another that turns a function of one clip into one of all.
    """
    if size is None:
        size = jnp.broadcast_to(jnp.asarray(video.shape[2:4]), (len(video), 2))

    def plan(key: jax.Array, size: jax.Array) -> Plan:
        draw_key, crop_key, flip_key, erase_key = jax.random.split(key, 4)
        draws = draw_operations(
            draw_key, count=operations, magnitude=magnitude, deviation=deviation
        )
        source = compose_maps(draws, height=size[0], width=size[1])
        box = crop_box(crop_key, height=size[0], width=size[1], min_area=min_area)
        source = source @ box_map(box, height=height, width=width)
        if flip:
            mirrored = jax.random.bernoulli(flip_key)
            source = source @ jnp.where(mirrored, flip_map(width), jnp.eye(3))
        erased, noise_key = draw_erasure(erase_key, height=height, width=width, chance=erase)
        return Plan(draws, source, erased, noise_key)

    def carry_out(plan: Plan, video: jax.Array, size: jax.Array) -> jax.Array:
        x = change_pixels(video, plan.draws, size) if operations else video
        x = resample(x, plan.source, size, height=height, width=width)
        if not erase:
            return x
        return fill_box(plan.noise_key, x, plan.erased, mean=mean, std=std)

    # The draws of all clips together: they are many small operations.
    return map_clips(carry_out)(jax.vmap(plan)(key, size), video, size)


def crop_box(
    key: jax.Array, *, height: int | jax.Array, width: int | jax.Array, min_area: float
) -> Box:
    """Draw the box of a random resized crop; if none fits, return the largest centred one.

    height, width: of the image. min_area: as a fraction of the image.
    """
    box = _draw_box(key, height=height, width=width, area=(min_area, 1.0), aspect=CROP_ASPECT)
    box_width = jnp.minimum(width, jnp.round(height * CROP_ASPECT[1]))
    box_height = jnp.minimum(height, jnp.round(width / CROP_ASPECT[0]))
    centred = Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)
    return jax.tree.map(lambda x, fallback: jnp.where(box.width > 0, x, fallback), box, centred)


def _draw_box(
    key: jax.Array,
    *,
    height: int | jax.Array,
    width: int | jax.Array,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """Draw a box within an image of height x width.

    area (a fraction of the image) is drawn uniformly and aspect (width / height)
    log-uniformly, from (lowest, highest), until the box fits; then its corner uniformly.
    """
    area_key, aspect_key, x_key, y_key = jax.random.split(key, 4)
    areas = (
        height * width * jax.random.uniform(area_key, [ATTEMPTS], minval=area[0], maxval=area[1])
    )
    low, high = map(math.log, aspect)
    aspects = jnp.exp(jax.random.uniform(aspect_key, [ATTEMPTS], minval=low, maxval=high))
    widths = jnp.round(jnp.sqrt(areas * aspects))
    heights = jnp.round(jnp.sqrt(areas / aspects))
    fits = (widths <= width) & (heights <= height) & (widths > 0) & (heights > 0)
    first = jnp.argmax(fits)
    box_width = jnp.where(fits[first], widths[first], 0)
    box_height = jnp.where(fits[first], heights[first], 0)
    x = jnp.floor(jax.random.uniform(x_key) * (width - box_width + 1))
    y = jnp.floor(jax.random.uniform(y_key) * (height - box_height + 1))
    return Box(x, y, box_width, box_height)


def box_map(box: Box, *, height: int, width: int) -> jax.Array:
    """Return the map float32 [3, 3] from an image of height x width to a box of its source.

    See `randaugment.compose_maps` for maps.
    """
    zero = jnp.zeros([])
    rows = [[box.width / width, zero, box.x], [zero, box.height / height, box.y]]
    return jnp.stack([*map(jnp.stack, rows), jnp.asarray([0.0, 0.0, 1.0])])


def flip_map(width: int) -> jax.Array:
    """Return the map float32 [3, 3] that mirrors an image of this width left to right."""
    return jnp.asarray([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def resample(
    video: jax.Array, source: jax.Array, size: jax.Array, *, height: int, width: int
) -> jax.Array:
    """Apply a map to a video: float32 [F, height, width, C] on the scale of the video.

    video: [F, H, W, C] of any dtype. source: float32 [3, 3], from a point of the result to one
    of the video, see `randaugment.compose_maps`. size: int32 [2], the height and the width that
    the video fills.
    Linear along each axis, with constant extrapolation for half a pixel at the edge and grey
    outside. No averaging when an image gets smaller, as in the reference.
    """
    # Two matrix products instead of gathers, which are slow on TPUs: first along the rows of
    # the source, then along the columns of the result (Catmull and Smith, 1980).
    (a, b, c), (d, e, f) = source[0], source[1]
    x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
    rows = (jnp.arange(video.shape[1]) + 0.5)[:, None]
    horizontal = _interpolation_weights(
        a * x + b * (rows - d * x - f) / e + c, size[1], length=video.shape[2]
    )  # [H, width, W]
    vertical = _interpolation_weights(
        d * x[:, None] + e * y + f, size[0], length=video.shape[1]
    )  # [width, height, H]
    # Outside of the image all weights are zero, so with grey subtracted the sum there is grey.
    z = video.astype(jnp.float32) - GREY
    z = jnp.einsum("fvuc,vxu->fvxc", z, horizontal)
    return jnp.einsum("fvxc,xyv->fyxc", z, vertical) + GREY


def _interpolation_weights(positions: jax.Array, size: jax.Array, *, length: int) -> jax.Array:
    """Return the weights of `length` pixels in a linear interpolation, float32 [..., length].

    positions: float32 [...], in pixels from the edge. size: the pixels that are filled; the
    weights of a position outside of them are zero.
    """
    inside = (positions >= 0) & (positions <= size)
    centres = jnp.clip(positions - 0.5, 0, size - 1)[..., None]
    return jnp.maximum(0, 1 - jnp.abs(centres - jnp.arange(length))) * inside[..., None]


def draw_erasure(
    key: jax.Array, *, height: int, width: int, chance: float
) -> tuple[Box, jax.Array]:
    """Draw the box of random erasing, with probability `chance`, and the key of its noise."""
    whether, box_key, noise_key = jax.random.split(key, 3)
    box = _draw_box(box_key, height=height, width=width, area=ERASE_AREA, aspect=ERASE_ASPECT)
    erased = jax.random.bernoulli(whether, float(chance))
    return box._replace(width=box.width * erased, height=box.height * erased), noise_key


def fill_box(
    key: jax.Array,
    video: jax.Array,
    box: Box,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Fill a box of float32 [F, H, W, C], the same in all frames, with noise.

    mean, std: the pixel statistics of the model. The noise is normal with mean 0 and variance 1
    after the normalization of the model: on the scale of [0, 255] used here, that is
    255 * (mean + std * noise), not clipped.
    """
    _, height, width, _ = video.shape

    def fill(video):
        inside = box_mask(box, height=height, width=width)
        noise = jax.random.normal(key, video.shape)
        noise = 255 * (jnp.asarray(mean) + jnp.asarray(std) * noise)
        return jnp.where(inside[..., None], noise, video)

    return jax.lax.cond(box.width > 0, fill, lambda video: video, video)


def box_mask(box: Box, *, height: int, width: int) -> jax.Array:
    """Return bool [height, width], True inside the box."""
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    return (x >= box.x) & (x < box.x + box.width) & (y >= box.y) & (y < box.y + box.height)


def mix_clips(
    key: jax.Array,
    video: jax.Array,
    targets: jax.Array,
    rows: jax.Array,
    *,
    group: int,
    mixup: float,
    cutmix: float,
    switch: float,
) -> tuple[jax.Array, jax.Array]:
    """Mix float32 [B, F, H, W, C] and targets [B, classes] within groups of consecutive clips.

    Clip i of a group is mixed with clip group - 1 - i, with the same fraction for the whole
    group. rows: int32 [B], indices in the global batch; the draws of a group come from the key
    and its first row. group: clips per group. mixup, cutmix: parameters of the Beta
    distributions, 0 for never. switch: the probability of cutmix if both are used.
    Returns the mixed videos and targets. Raises UserError if B is not a multiple of `group`.
    """
    if not (mixup or cutmix):
        return video, targets
    if len(video) % group:
        raise UserError(
            f"mixing groups of {group} do not divide {len(video)} clips: use "
            f"--config.augment.group={math.gcd(group, len(video))}"
        )
    _, _, height, width, _ = video.shape

    def draw(row):
        """Return the weights [height, width] of a clip's own pixels, and [] of its own target."""
        keys = jax.random.split(jax.random.fold_in(key, row), 4)
        if mixup:
            fraction = jax.random.beta(keys[0], mixup, mixup)
            uniform = jnp.broadcast_to(fraction, (height, width))
        if cutmix:
            cut = jax.random.beta(keys[1], cutmix, cutmix)
            box = cut_box(keys[2], cut, height=height, width=width)
            own = 1.0 - box_mask(box, height=height, width=width)
        if not (mixup and cutmix):
            return (uniform, fraction) if mixup else (own, own.mean())
        paste = jax.random.bernoulli(keys[3], switch)
        return jnp.where(paste, own, uniform), jnp.where(paste, own.mean(), fraction)

    pixel_weights, target_weights = jax.vmap(draw)(rows.reshape(-1, group)[:, 0])

    def mix(x, weight):
        x = x.reshape(-1, group, *x.shape[1:])
        return (weight * x + (1 - weight) * x[:, ::-1]).reshape(-1, *x.shape[2:])

    return (
        mix(video, pixel_weights[:, None, None, :, :, None]),
        mix(targets, target_weights[:, None, None]),
    )


def cut_box(key: jax.Array, fraction: jax.Array, *, height: int, width: int) -> Box:
    """Draw the box that cutmix pastes into an image of height x width.

    Its area is 1 - fraction of the image, before the part outside of the image is cut off.
    """
    x_key, y_key = jax.random.split(key)
    side = jnp.sqrt(1 - fraction)

    def span(key, size):
        half = jnp.floor(size * side) // 2
        centre = jax.random.randint(key, [], 0, size)
        low, high = jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)
        return low, high - low

    x, box_width = span(x_key, width)
    y, box_height = span(y_key, height)
    return Box(x, y, box_width, box_height)


def smooth_targets(labels: jax.Array, *, classes: int, smoothing: float) -> jax.Array:
    """Return targets float32 [B, classes] of labels int32 [B] or bool [B, classes].

    smoothing is spread over all classes; each label gets 1 - smoothing in addition.
    """
    chosen = jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels.astype(jnp.float32)
    return (1 - smoothing) * chosen + smoothing / classes
