"""RandAugment for clips: the same operations and strengths for all frames of a clip.

Cubuk, Zoph, Shlens and Le, "RandAugment", 2020, in the form m7-n4-mstd0.5-inc1: four draws
from fifteen operations whose strength grows with the magnitude, each applied with probability
0.5. Each operation has the effect of Pillow's operation of that name, up to rounding.

There are four kinds of operations, each closed under composition: tables of 256 values (eight of
them), colour, sharpness, and affine maps (five). The draws of one kind are composed first, on
small tables and matrices, and the pixels are changed once per kind, in that order. The cost:
operations of different kinds are reordered, and two sharpness operations become one with the
product of their factors. Maps are last, so the grey that they fill in stays grey, and all maps,
crop and flip together interpolate once.

Each kind is in a branch. Under `vmap` a branch is computed for all clips; in a loop over the
clips only for those that drew it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "contrast",
    "brightness",
    "color",
    "sharpness",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
NONE = -1
TABLES = OPERATIONS[:8]
FROM_COUNTS = ("auto_contrast", "equalize", "contrast")  # tables that depend on the histogram
CHANCE = 0.5
MAX_LEVEL = 10.0


class Draws(NamedTuple):
    """The operations of one clip, in the order in which they are applied.

    operation: int32 [n], an index into OPERATIONS or NONE. strength: float32 [n], 0 to 1.
    sign: float32 [n], 1 or -1: the direction, for operations that have two.
    """

    operation: jax.Array
    strength: jax.Array
    sign: jax.Array


def draw_operations(key: jax.Array, *, count: int, magnitude: float, deviation: float) -> Draws:
    """Draw `count` operations with replacement, and a level for each.

    magnitude, deviation: mean and standard deviation of the level, 0 to `MAX_LEVEL`.
    """
    which, applied, level, sign = jax.random.split(key, 4)
    operation = jax.random.randint(which, [count], 0, len(OPERATIONS))
    level = magnitude + deviation * jax.random.normal(level, [count])
    return Draws(
        jnp.where(jax.random.bernoulli(applied, CHANCE, [count]), operation, NONE),
        jnp.clip(level, 0, MAX_LEVEL) / MAX_LEVEL,
        jax.random.rademacher(sign, [count], jnp.float32),
    )


def change_pixels(video: jax.Array, draws: Draws, size: jax.Array) -> jax.Array:
    """Apply all operations except maps to uint8 [F, H, W, C]: float32 in [0, 255].

    size: int32 [2], the height and the width that the clip fills. The zeros outside of it may
    get any value.
    """
    x = jax.lax.cond(
        _is_drawn(draws, TABLES).any(),
        lambda: look_up(video, compose_tables(video, draws, size)),
        lambda: video,
    ).astype(jnp.float32)
    for name, function in (("color", _saturate), ("sharpness", _sharpen)):
        drawn = _is_drawn(draws, [name])
        factor = jnp.where(drawn, _factors(draws), 1).prod()
        x = jax.lax.cond(drawn.any(), function, lambda x, *_: x, x, factor, size)
    return x


def _saturate(x: jax.Array, factor: jax.Array, size: jax.Array) -> jax.Array:
    grey = luma(x)
    return jnp.clip(grey + factor * (x - grey), 0, 255)


def _sharpen(x: jax.Array, factor: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.clip(x + (factor - 1) * detail(x, size), 0, 255)


def _is_drawn(draws: Draws, names: Sequence[str]) -> jax.Array:
    """Return bool [n], True where one of the operations was drawn."""
    return jnp.isin(draws.operation, jnp.asarray([OPERATIONS.index(name) for name in names]))


def histogram(video: jax.Array, size: jax.Array) -> jax.Array:
    """Count the values of each frame and channel of uint8 [F, H, W, C]: int32 [F, C, 256].

    size: int32 [2], the height and the width that the clip fills. The zeros outside of it are
    not counted.
    """
    frames, height, width, channels = video.shape
    values = video.transpose(0, 3, 1, 2).reshape(frames, channels, -1)
    counts = count_values(values, jnp.int32(1))
    return counts.at[..., 0].add(size[0] * size[1] - height * width)


def count_values(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum the weights of each value, 0 to 255, of [F, C, n]: int32 [F, C, 256].

    weights: int32, [F, C, n] or [].
    """
    # TPUs scatter one value at a time. On CPUs, comparing is 80 times slower than scattering.
    weights = jnp.broadcast_to(weights, values.shape)
    return jax.lax.platform_dependent(
        values, weights, tpu=_count_by_comparing, default=_count_by_scattering
    )


def _count_by_scattering(values: jax.Array, weights: jax.Array) -> jax.Array:
    frames, channels, _ = values.shape
    counts = jnp.zeros([frames * channels * 256], jnp.int32)
    first = 256 * jnp.arange(frames * channels).reshape(frames, channels, 1)
    counts = counts.at[first + values].add(weights, mode="promise_in_bounds")
    return counts.reshape(frames, channels, 256)


def _count_by_comparing(values: jax.Array, weights: jax.Array) -> jax.Array:
    same = values[..., None] == jnp.arange(256, dtype=values.dtype)
    return (same * weights[..., None]).sum(-2, dtype=jnp.int32)


def look_up(video: jax.Array, tables: jax.Array) -> jax.Array:
    """Map the values of uint8 [F, H, W, C] by tables uint8 [F, C, 256]: uint8 [F, H, W, C]."""
    frames, _, _, channels = video.shape
    first = 256 * jnp.arange(frames * channels).reshape(frames, 1, 1, channels)
    return tables.reshape(-1).at[first + video].get(mode="promise_in_bounds")


def compose_tables(video: jax.Array, draws: Draws, size: jax.Array) -> jax.Array:
    """Return the composition of all table operations that were drawn, uint8 [F, C, 256].

    An operation that depends on the histogram gets the one that the operations before it produce.
    video: uint8 [F, H, W, C]. size: see `histogram`.
    """
    shape = (video.shape[0], video.shape[3], 256)
    identity = jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32), shape)
    from_counts = _is_drawn(draws, FROM_COUNTS)
    first_counts = jax.lax.cond(
        from_counts.any(), lambda: histogram(video, size), lambda: jnp.ones(shape, jnp.int32)
    )

    def compose(total, draw):
        operation, strength, factor, from_counts = draw
        counts = jax.lax.cond(
            from_counts, lambda: count_values(total, first_counts), lambda: first_counts
        )
        # Any operation without a table does nothing here.
        index = jnp.where(operation < 0, len(TABLES), jnp.minimum(operation, len(TABLES)))
        makers = [*(_MAKERS[name] for name in TABLES), lambda *_: identity]
        table = jax.lax.switch(
            index,
            [functools.partial(_full_table, make) for make in makers],
            counts,
            strength,
            factor,
        )
        return jnp.take_along_axis(table, total, axis=-1), None

    # A loop, although it is short: XLA on CPUs would fuse the unrolled steps into `look_up`, and
    # compute them again for every pixel.
    steps = (draws.operation, draws.strength, _factors(draws), from_counts)
    return jax.lax.scan(compose, identity, steps)[0].astype(jnp.uint8)


def _full_table(make: Callable, counts: jax.Array, strength: jax.Array, factor: jax.Array):
    """Return the table of one operation at one strength, int32 [F, C, 256].

    make: of `_MAKERS`. counts: int32 [F, C, 256]. strength: [], 0 to 1. factor: [], see `_factors`.
    """
    table = jnp.clip(make(counts, strength, factor), 0, 255).astype(jnp.int32)
    return jnp.broadcast_to(table, counts.shape)


def _auto_contrast(counts, strength, factor):
    low, high = _range(counts)
    stretched = (VALUES - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, VALUES)


def _equalize(counts, strength, factor):
    # Distributes all pixels except the brightest over 255 equal steps.
    _, high = _range(counts)
    brightest = jnp.take_along_axis(counts, high, axis=-1)
    step = (counts.sum(-1, keepdims=True) - brightest) // 255
    darker = jnp.cumsum(counts, axis=-1) - counts
    return jnp.where(step > 0, (step // 2 + darker) // jnp.maximum(step, 1), VALUES)


def _range(counts):
    """Return the lowest and the highest value that occur, int32 [F, C, 1]."""
    present = counts > 0
    low = jnp.argmax(present, axis=-1, keepdims=True)
    return low, 255 - jnp.argmax(present[..., ::-1], axis=-1, keepdims=True)


def _posterize(counts, strength, factor):
    cell = 1 << (4 + jnp.floor(4 * strength).astype(jnp.int32))  # 4 bits left, or fewer
    return VALUES - VALUES % cell


def _solarize(counts, strength, factor):
    return jnp.where(VALUES < 256 - jnp.floor(256 * strength), VALUES, 255 - VALUES)


def _solarize_add(counts, strength, factor):
    return jnp.where(VALUES < 128, VALUES + jnp.floor(110 * strength), VALUES)


def _contrast(counts, strength, factor):
    mean = luma((counts * VALUES).sum(-1) / counts.sum(-1))
    mean = jnp.floor(mean + 0.5)[..., None]
    return mean + factor * (VALUES - mean)


VALUES = np.arange(256)
_MAKERS = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda counts, strength, factor: 255 - VALUES,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "contrast": _contrast,
    "brightness": lambda counts, strength, factor: factor * VALUES,
}


def luma(x: jax.Array) -> jax.Array:
    """Return the brightness [..., 1] of float32 [..., C]: luma of RGB if C is 3, else the mean."""
    if x.shape[-1] != 3:
        return x.mean(-1, keepdims=True)
    # It brings chex; commands that do not train import this module too.
    import dm_pix

    return dm_pix.rgb_to_grayscale(x)


def detail(x: jax.Array, size: jax.Array) -> jax.Array:
    """Return float32 [F, H, W, C] minus its blur, a 3 x 3 mean with weight 5 at the centre.

    size: int32 [2], the height and the width that the clip fills. The result is 0 at the border
    of that part and outside of it.
    """
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    centre = x[:, 1:-1, 1:-1]
    rows, columns = (jnp.arange(1, length - 1) for length in x.shape[1:3])
    inside = (rows[:, None] < size[0] - 1) & (columns < size[1] - 1)
    change = jnp.where(inside[..., None], centre - (total + 4 * centre) / 13, 0)
    return jnp.pad(change, [(0, 0), (1, 1), (1, 1), (0, 0)])


def compose_maps(draws: Draws, *, height: int | jax.Array, width: int | jax.Array) -> jax.Array:
    """Return the composition of all maps that were drawn, float32 [3, 3].

    It maps a point (x, y, 1) of the result to its point in the source, of this height and
    width. Coordinates are in pixels from the top left corner, so the centre of the first pixel
    is (0.5, 0.5).
    """
    total = jnp.eye(3)
    centre = jnp.asarray([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    back = jnp.asarray([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    for index in range(len(draws.operation)):
        amount = draws.sign[index] * draws.strength[index]
        angle, shear_x, shear_y, translate_x, translate_y = (
            jnp.where(draws.operation[index] == OPERATIONS.index(name), most * amount, 0)
            for name, most in (
                ("rotate", math.radians(30)),
                ("shear_x", 0.3),
                ("shear_y", 0.3),
                ("translate_x", 0.45 * width),
                ("translate_y", 0.45 * height),
            )
        )
        cos, sin, one, zero = jnp.cos(angle), jnp.sin(angle), jnp.ones([]), jnp.zeros([])
        turn = jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one]).reshape(3, 3)
        slide = jnp.stack([one, shear_x, translate_x, shear_y, one, translate_y, zero, zero, one])
        total = total @ centre @ turn @ back @ slide.reshape(3, 3)
    return total


def _factors(draws: Draws) -> jax.Array:
    """Return the factors of colour, contrast, brightness and sharpness operations, [n]."""
    return jnp.maximum(0.1, 1 + 0.9 * draws.sign * draws.strength)
