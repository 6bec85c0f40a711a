"""Augment the clips of action detection, pixels and boxes together, on the device.

One flip and one change of colours per clip, the same in all frames, and a jitter of each box.
The draws of a clip come from its key, so the result is the same in any batch and on any number
of devices.
"""

import jax
import jax.numpy as jnp

HUE, LEVEL = 180.0, 255.0  # the ranges of hue, and of saturation and value, in OpenCV


def augment(
    key: jax.Array,
    video: jax.Array,
    boxes: jax.Array,
    *,
    flip: bool,
    hue: int,
    saturation: int,
    value: int,
    jitter: tuple[float, float, float, float],
) -> tuple[jax.Array, jax.Array]:
    """Augment one clip, uint8 [F, H, W, C], and its boxes, float32 [M, 4].

    Returns the clip as float32 [F, H, W, C] in [0, 255], and the boxes. boxes: x1, y1, x2, y2 in
    pixels. flip: mirror half of the clips. hue, saturation, value: the largest changes, in the
    units of OpenCV; 0 in all of them changes no colours, and other values need RGB. jitter: see
    `jitter_boxes`.
    """
    flip_key, colour_key, jitter_key = jax.random.split(key, 3)
    _, height, width, _ = video.shape
    pixels = video.astype(jnp.float32)
    if flip:
        mirrored = jax.random.bernoulli(flip_key)
        pixels = jnp.where(mirrored, pixels[:, :, ::-1], pixels)
        boxes = jnp.where(mirrored, flip_boxes(boxes, width), boxes)
    if hue or saturation or value:
        most = jnp.asarray([hue, saturation, value])
        pixels = shift_colours(pixels, *jax.random.randint(colour_key, [3], -most, most + 1))
    return pixels, jitter_boxes(jitter_key, boxes, height=height, width=width, jitter=jitter)


def flip_boxes(boxes: jax.Array, width: int) -> jax.Array:
    """Return boxes [..., 4] of a clip of this width in the clip mirrored left to right."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def shift_colours(
    video: jax.Array, hue: jax.Array, saturation: jax.Array, value: jax.Array
) -> jax.Array:
    """Add to the hue, saturation and value of RGB pixels, float32 [..., 3] in [0, 255].

    hue: of `HUE`, wraps around. saturation, value: of `LEVEL`, clipped. Returns the same shape and
    range.
    """
    red, green, blue = jnp.moveaxis(video, -1, 0)
    top, low = video.max(-1), video.min(-1)
    chroma = top - low
    # In sixths of the circle, from red over green and blue back to red.
    sector = jnp.where(
        top == red,
        (green - blue) / jnp.maximum(chroma, 1e-6),
        jnp.where(
            top == green,
            2 + (blue - red) / jnp.maximum(chroma, 1e-6),
            4 + (red - green) / jnp.maximum(chroma, 1e-6),
        ),
    )
    sector += hue * 6 / HUE
    depth = jnp.clip(chroma / jnp.maximum(top, 1e-6) + saturation / LEVEL, 0, 1)
    top = jnp.clip(top + value, 0, LEVEL)

    def channel(offset):
        angle = (offset + sector) % 6
        return top - top * depth * jnp.clip(jnp.minimum(angle, 4 - angle), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def jitter_boxes(
    key: jax.Array,
    boxes: jax.Array,
    *,
    height: int,
    width: int,
    jitter: tuple[float, float, float, float],
) -> jax.Array:
    """Move the sides of boxes, float32 [M, 4], and keep a pixel or more of each in the clip.

    height, width: of the clip. jitter: the largest moves of a side, as fractions of the length
    of its box: out and in along x, out and in along y. The draw of a box depends on its index,
    and not on M.
    """
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(len(boxes)))
    draws = jax.vmap(lambda key: jax.random.uniform(key, [4]))(keys)
    x_out, x_in, y_out, y_in = jitter
    # Of x1, y1, x2, y2.
    least = jnp.asarray([-x_out, -y_out, -x_in, -y_in])
    most = jnp.asarray([x_in, y_in, x_out, y_out])
    sides = jnp.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return clip_boxes(
        boxes + (least + draws * (most - least)) * sides, jnp.asarray([height, width])
    )


def clip_boxes(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Return boxes [..., M, 4] cut off at the edges of their clips, but at least one pixel long.

    size: [..., 2], the height and the width of each clip.
    """
    limit = size[..., None, ::-1].astype(boxes.dtype)
    low = jnp.clip(boxes[..., :2], 0, limit - 1)
    high = jnp.maximum(jnp.minimum(boxes[..., 2:], limit), low + 1)
    return jnp.concatenate([low, high], axis=-1)


def extend_boxes(boxes: jax.Array, size: jax.Array, *, x: float, y: float) -> jax.Array:
    """Return boxes [..., M, 4] that are longer by fractions of their sides, half on each end.

    size: [..., 2], the height and the width of each clip, which cut the boxes off.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    more = (high - low) * jnp.asarray([x, y]) / 2
    return clip_boxes(jnp.concatenate([low - more, high + more], axis=-1), size)


def whole_boxes(size: jax.Array) -> jax.Array:
    """Return the box of each whole clip, float32 [..., 1, 4]. size: [..., 2], height and width."""
    far = size[..., ::-1].astype(jnp.float32)
    return jnp.concatenate([jnp.zeros_like(far), far], axis=-1)[..., None, :]


def fill_outside(video: jax.Array, size: jax.Array, mean: tuple[float, ...]) -> jax.Array:
    """Return clips [B, F, H, W, C] as float32, with the mean colour outside of their sizes.

    size: int32 [B, 2], the height and the width that each clip fills from the top left corner.
    mean: the mean of each channel, in [0, 1]. After normalization it is zero, with which the
    reference pads.
    """
    _, _, height, width, _ = video.shape
    rows = jnp.arange(height) < size[:, :1]
    columns = jnp.arange(width) < size[:, 1:]
    inside = rows[:, None, :, None, None] & columns[:, None, None, :, None]
    return jnp.where(inside, video.astype(jnp.float32), 255 * jnp.asarray(mean, jnp.float32))
