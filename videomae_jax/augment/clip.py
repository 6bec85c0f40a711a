"""What fine-tuning does to its clips on the device, between the reader and the model.

RandAugment, random resized crop, flip, random erasing, each with one draw per clip, the same
in all its frames; then mixup or cutmix between the clips of a small group. A clip's draws
come from its own key and a group's from its own, so the result is the same in any batch on
any number of devices. All shapes are static, and nothing moves between devices.

Measured on a shared CPU, clips of 256 x 340, CPU seconds: 0.55 a clip, of 7.2 a clip for the
gradient of ViT-S at 224 with it: 8 %. It does not grow with the model.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from videomae_jax.augment.randaugment import change_pixels, compose_maps, draw_operations
from videomae_jax.errors import UserError

GREY = 128.0  # what maps move in from outside the picture
ATTEMPTS = 10  # boxes drawn before giving up on one that fits
CROP_ASPECT = (3 / 4, 4 / 3)  # width / height
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)


class Box(NamedTuple):
    """A rectangle in pixels, whole numbers as float32; of size 0 where none was found."""

    x: jax.Array
    y: jax.Array
    width: jax.Array
    height: jax.Array


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
) -> jax.Array:
    """Augment one clip uint8 [F, H, W, C]: float32 [F, height, width, C] on the same scale.

    size: int32 [2], the height and the width that the clip fills from the top left corner, the
    rest being zeros; None for all. mean, std: the model's pixel statistics. operations,
    magnitude, deviation: of RandAugment; 0 operations is none. min_area: of the crop, a share
    of the picture. flip: whether half of the clips are mirrored. erase: the chance of random
    erasing.
    """
    draw_key, crop_key, flip_key, erase_key = jax.random.split(key, 4)
    high, wide = size = jnp.asarray(video.shape[1:3]) if size is None else size
    source = jnp.eye(3)
    if operations:
        draws = draw_operations(
            draw_key, count=operations, magnitude=magnitude, deviation=deviation
        )
        source = compose_maps(draws, height=high, width=wide)
        video = change_pixels(video, draws, size)
    source = source @ box_map(
        crop_box(crop_key, height=high, width=wide, min_area=min_area), height=height, width=width
    )
    if flip:
        mirrored = jax.random.bernoulli(flip_key)
        source = source @ jnp.where(mirrored, flip_map(width), jnp.eye(3))
    video = resample(video, source, size, height=height, width=width)
    return erase_box(erase_key, video, chance=erase, mean=mean, std=std)


def crop_box(key: jax.Array, *, height: ArrayLike, width: ArrayLike, min_area: float) -> Box:
    """Draw the box of a random resized crop; the largest centred legal one if none fits."""
    box = _draw_box(key, height=height, width=width, area=(min_area, 1.0), aspect=CROP_ASPECT)
    wide = jnp.minimum(width, jnp.round(height * CROP_ASPECT[1]))
    high = jnp.minimum(height, jnp.round(width / CROP_ASPECT[0]))
    centred = Box((width - wide) // 2, (height - high) // 2, wide, high)
    return jax.tree.map(lambda found, else_: jnp.where(box.width > 0, found, else_), box, centred)


def _draw_box(
    key: jax.Array,
    *,
    height: ArrayLike,
    width: ArrayLike,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """Draw area (a share) uniformly and aspect log-uniformly until the box fits, then its place."""
    area_key, aspect_key, x_key, y_key = jax.random.split(key, 4)
    areas = (
        height * width * jax.random.uniform(area_key, [ATTEMPTS], minval=area[0], maxval=area[1])
    )
    low, high = map(math.log, aspect)
    aspects = jnp.exp(jax.random.uniform(aspect_key, [ATTEMPTS], minval=low, maxval=high))
    wide, high = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
    fits = (wide <= width) & (high <= height) & (wide > 0) & (high > 0)
    first = jnp.argmax(fits)
    wide, high = (jnp.where(fits[first], side[first], 0) for side in (wide, high))
    x = jnp.floor(jax.random.uniform(x_key) * (width - wide + 1))
    y = jnp.floor(jax.random.uniform(y_key) * (height - high + 1))
    return Box(x, y, wide, high)


def box_map(box: Box, *, height: int, width: int) -> jax.Array:
    """Return the map that enlarges a box to height x width; see `randaugment.compose_maps`."""
    zero = jnp.zeros([])
    rows = [[box.width / width, zero, box.x], [zero, box.height / height, box.y]]
    return jnp.stack([*map(jnp.stack, rows), jnp.asarray([0.0, 0.0, 1.0])])


def flip_map(width: int) -> jax.Array:
    """Return the map that mirrors left and right."""
    return jnp.asarray([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def resample(
    video: jax.Array, source: jax.Array, size: jax.Array, *, height: int, width: int
) -> jax.Array:
    """Fetch each pixel from where `source` says: float32 [F, height, width, C].

    video: [F, H, W, C] of any dtype. size: int32 [2], the height and the width that it fills.
    Linear along each axis, edge pixels held, grey outside; no averaging where it shrinks, as
    in the reference.
    """
    # Two matrix products instead of gathers, which are slow on TPUs: first along the rows of
    # the source, then down the columns of the result (Catmull and Smith, 1980).
    (a, b, c), (d, e, f) = source[0], source[1]
    x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
    rows = (jnp.arange(video.shape[1]) + 0.5)[:, None]
    across = _taps(a * x + b * (rows - d * x - f) / e + c, size[1], video.shape[2])
    down = _taps(d * x[:, None] + e * y + f, size[0], video.shape[1])  # [width, height, H]
    z = video.astype(jnp.float32) - GREY  # no weight, no light: what is missing is grey
    z = jnp.einsum("fvuc,vxu->fvxc", z, across)  # across: [H, width, W]
    return jnp.einsum("fvxc,xyv->fyxc", z, down) + GREY


def _taps(places: jax.Array, size: jax.Array, room: int) -> jax.Array:
    """Return what interpolating at places [...] takes of `size` of `room` pixels: [..., room]."""
    inside = (places >= 0) & (places <= size)
    nearest = jnp.clip(places - 0.5, 0, size - 1)[..., None]
    return jnp.maximum(0, 1 - jnp.abs(nearest - jnp.arange(room))) * inside[..., None]


def erase_box(
    key: jax.Array,
    video: jax.Array,
    *,
    chance: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Fill one box of float32 [F, H, W, C], the same in all frames, with noise by a chance.

    The noise is normal with mean 0 and variance 1 after the model's normalization: on the
    scale of 0 to 255 of the pixels here that is 255 * (mean + std * noise), unclipped.
    """
    if not chance:
        return video
    whether, box_key, noise_key = jax.random.split(key, 3)
    _, height, width, _ = video.shape
    box = _draw_box(box_key, height=height, width=width, area=ERASE_AREA, aspect=ERASE_ASPECT)
    erased = box_mask(box, height=height, width=width) & jax.random.bernoulli(whether, chance)
    noise = jax.random.normal(noise_key, video.shape)
    noise = 255 * (jnp.asarray(mean) + jnp.asarray(std) * noise)
    return jnp.where(erased[..., None], noise, video)


def box_mask(box: Box, *, height: int, width: int) -> jax.Array:
    """Return bool [height, width], True in the box."""
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

    Clip i of a group is mixed with clip group - 1 - i, all by the same share. rows: int32 [B],
    places in the batch of all devices; a group's draws come from the key and its first row.
    mixup, cutmix: parameters of the Beta distributions, 0 for never. switch: the chance of
    cutmix where there are both.
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
        """Return how much of each pixel [height, width] of a clip is its own, and of its target."""
        keys = jax.random.split(jax.random.fold_in(key, row), 4)
        if mixup:
            share = jax.random.beta(keys[0], mixup, mixup)
            even = jnp.broadcast_to(share, (height, width))
        if cutmix:
            cut = jax.random.beta(keys[1], cutmix, cutmix)
            own = 1.0 - box_mask(
                cut_box(keys[2], cut, height=height, width=width), height=height, width=width
            )
        if not (mixup and cutmix):
            return (even, share) if mixup else (own, own.mean())
        paste = jax.random.bernoulli(keys[3], switch)
        return jnp.where(paste, own, even), jnp.where(paste, own.mean(), share)

    weights, shares = jax.vmap(draw)(rows.reshape(-1, group)[:, 0])

    def mix(x, share):
        x = x.reshape(-1, group, *x.shape[1:])
        return (share * x + (1 - share) * x[:, ::-1]).reshape(-1, *x.shape[2:])

    return mix(video, weights[:, None, None, :, :, None]), mix(targets, shares[:, None, None])


def cut_box(key: jax.Array, share: jax.Array, *, height: int, width: int) -> Box:
    """Draw the box that cutmix pastes: 1 - share of the picture, less what lies outside of it."""
    x_key, y_key = jax.random.split(key)
    side = jnp.sqrt(1 - share)

    def span(key, size):
        half = jnp.floor(size * side) // 2
        centre = jax.random.randint(key, [], 0, size)
        low, high = jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)
        return low, high - low

    (x, wide), (y, high) = span(x_key, width), span(y_key, height)
    return Box(x, y, wide, high)


def smooth_targets(labels: jax.Array, *, classes: int, smoothing: float) -> jax.Array:
    """Return float32 [B, classes]: 1 - smoothing on the label, the rest spread over all."""
    return (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
