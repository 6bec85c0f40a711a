"""Patches, pixel normalization, regression targets and position tables.

A token is a tubelet of `patch = (pt, ph, pw)` pixels, flattened as (pt, ph, pw, c):
the order of the published weights. Tokens are in raster order, time slowest.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError

Triple = tuple[int, int, int]
POSITIONS = ("1d", "3d")  # kinds of position tables


def patch_grid(video: Triple, patch: Triple) -> Triple:
    """Return the patches (T, rows, columns) of a video of (frames, height, width) pixels.

    Raises UserError when a side is not a whole number of patches.
    """
    for name, size, step in zip(("frames", "height", "width"), video, patch, strict=True):
        if size < step or size % step:
            below = size // step * step
            legal = f"{below} or {below + step}" if below > 0 else f"{step}"
            raise UserError(f"{name} {size} is not a multiple of the patch's {step}: use {legal}")
    (frames, height, width), (pt, ph, pw) = video, patch
    return frames // pt, height // ph, width // pw


def video_grid(video: jax.Array, patch: Triple) -> Triple:
    """Return the patches (T, rows, columns) of each clip of a video [B, F, H, W, C].

    Raises UserError when a side is not a whole number of patches.
    """
    _, frames, height, width, _ = video.shape
    return patch_grid((frames, height, width), patch)


def patchify(video: jax.Array, patch: Triple) -> jax.Array:
    """Cut a video [B, F, H, W, C] of any dtype into tokens [B, N, P] of the same dtype.

    Raises UserError when a side is not a whole number of patches.
    """
    (t, h, w), (pt, ph, pw) = video_grid(video, patch), patch
    batch, channels = video.shape[0], video.shape[-1]
    x = video.reshape(batch, t, pt, h, ph, w, pw, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)  # [B, t, h, w, pt, ph, pw, c]
    return x.reshape(batch, t * h * w, pt * ph * pw * channels)


def unpatchify(tokens: jax.Array, grid: Triple, patch: Triple) -> jax.Array:
    """Join tokens [B, N, P] of any dtype into a video [B, F, H, W, C]: undo `patchify`."""
    (t, h, w), (pt, ph, pw) = grid, patch
    batch = tokens.shape[0]
    x = tokens.reshape(batch, t, h, w, pt, ph, pw, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)  # [B, t, pt, h, ph, w, pw, c]
    return x.reshape(batch, t * pt, h * ph, w * pw, -1)


def normalize_pixels(
    tokens: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Return (x / 255 - mean) / std per channel, float32 [..., P], of tokens [..., P] in [0, 255].

    mean, std: one number per channel, for pixels in [0, 1].
    """
    # One multiplication and one addition. The channel is the fastest axis of a token.
    scale = np.asarray([1 / (255 * s) for s in std], np.float32)
    shift = np.asarray([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    repeats = tokens.shape[-1] // len(mean)
    return tokens.astype(jnp.float32) * np.tile(scale, repeats) + np.tile(shift, repeats)


def patch_statistics(tokens: jax.Array, channels: int) -> tuple[jax.Array, jax.Array]:
    """Return the mean and std of each channel of uint8 tokens [..., P]: float32 [..., C] each.

    They are on the scale of [0, 1]. The variance is unbiased (n - 1), as in the reference.
    """
    x = _pixels(tokens)
    count = x.shape[-1] // channels
    mean = _channel_sums(x, channels) / count
    squares = jnp.square(x - _for_each_pixel(mean, x))
    return mean, jnp.sqrt(_channel_sums(squares, channels) / (count - 1))


def pixel_targets(tokens: jax.Array, channels: int, *, normalized: bool) -> jax.Array:
    """Return the regression targets, float32 [..., P], for uint8 tokens [..., P].

    They are pixels in [0, 1] or, if `normalized`, (x - mean) / (std + 1e-6) per token and
    channel (paper section 3.1, with the unbiased variance of the reference). The best constant
    prediction is then zero, with loss (n - 1) / n where n = pt * ph * pw: 511/512 for patches
    of 2 x 16 x 16.
    """
    x = _pixels(tokens)
    if normalized:
        mean, std = (_for_each_pixel(s, x) for s in patch_statistics(tokens, channels))
        x = (x - mean) / (std + 1e-6)
    return x


def pixels_from_targets(targets: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Undo the normalization of `pixel_targets`: float32 [..., P], about [0, 1], not clipped.

    mean, std: [..., C], as `patch_statistics` returns them.
    """
    return targets * (_for_each_pixel(std, targets) + 1e-6) + _for_each_pixel(mean, targets)


def _pixels(tokens: jax.Array) -> jax.Array:
    """Convert uint8 [..., P] to float32 [..., P] in [0, 1]."""
    return tokens.astype(jnp.float32) / 255


def _channel_sums(x: jax.Array, channels: int) -> jax.Array:
    """Sum [..., P] over the pixels of each channel: [..., C]."""
    # First sum the pixels that are `lanes` values apart. A direct sum of [..., P / C, C] over the
    # pixels, C values at a time, takes a GPU ten times as long.
    lanes = channels * math.gcd(x.shape[-1] // channels, 32)
    x = x.reshape(*x.shape[:-1], -1, lanes).sum(-2)
    return x.reshape(*x.shape[:-1], -1, channels).sum(-2)


def _for_each_pixel(values: jax.Array, x: jax.Array) -> jax.Array:
    """Repeat [..., C] for each pixel of [..., P]; the channel is the fastest axis."""
    return jnp.tile(values, x.shape[-1] // values.shape[-1])


def sincos_positions(count: int, width: int) -> np.ndarray:
    """Return the fixed position table float32 [N = count, D = width].

    The reference's table: one-dimensional over the flattened token index, base 10000, sine in
    even columns, cosine in odd columns, computed in float64. The index of a patch depends on
    the grid, so a table is valid for one grid only; see `interpolate_positions` for another.
    """
    column = np.arange(width)
    angle = np.arange(count)[:, None] / np.power(10000.0, 2 * (column // 2) / width)
    table = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    return table.astype(np.float32)


def separable_positions(grid: Triple, width: int) -> np.ndarray:
    """Return a position table float32 [N, D = width] in which each axis has columns of its own.

    About a quarter of the columns tell the time, the others the row and the column, each with
    the frequencies of `sincos_positions`. The same place at another time, or the next row, is
    then as easy to find as the next column; in a table over the flattened index it is not.
    """
    space = 2 * (3 * width // 16)
    columns = (width - 2 * space, space, space)
    parts = [
        sincos_positions(count, own)[places.reshape(-1)]
        for count, own, places in zip(grid, columns, np.indices(grid), strict=True)
    ]
    return np.concatenate(parts, axis=-1)


def interpolate_positions(
    table: np.ndarray, source: Triple, grid: Triple, *, cubic: bool = False
) -> np.ndarray:
    """Resample a table [N, D] of the grid `source` to another grid: float32 [N', D].

    Along time, rows and columns, with pixel centres aligned as in image resizing: a patch at the
    same relative location in the clip has about the same position. cubic: Keys' kernel with
    a = -0.75, PyTorch's "bicubic"; linear otherwise. Neither averages where a grid gets smaller.
    """
    x = table.reshape(*source, -1).astype(np.float64)
    for axis, (old, new) in enumerate(zip(source, grid, strict=True)):
        taps = (_cubic_taps if cubic else _linear_taps)(old, new)
        shape = [-1 if a == axis else 1 for a in range(4)]
        parts = [np.take(x, index, axis) * weight.reshape(shape) for index, weight in taps]
        x = np.sum(parts, axis=0)
    return x.reshape(-1, table.shape[-1]).astype(np.float32)


Taps = list[tuple[np.ndarray, np.ndarray]]  # of an axis: (index into the old, weight), [new] each


def _linear_taps(old: int, new: int) -> Taps:
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centre).astype(int)
    weight = centre - low
    return [(low, 1 - weight), (np.minimum(low + 1, old - 1), weight)]


def _cubic_taps(old: int, new: int) -> Taps:
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(centre).astype(int)
    taps = []
    for offset in (-1, 0, 1, 2):
        d = np.abs(centre - low - offset)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        # Outside of the grid, the patch at the edge is repeated.
        taps.append((np.clip(low + offset, 0, old - 1), np.where(d <= 1, near, far)))
    return taps


def positions(
    grid: Triple, width: int, *, kind: str = "1d", source: Triple | None, cubic: bool = False
) -> np.ndarray:
    """Return the position table for `grid`, float32 [N, width].

    kind: "1d" for the reference's `sincos_positions`, "3d" for `separable_positions`. source: the
    grid to interpolate from; None computes the table for `grid` itself. cubic: how, see
    `interpolate_positions`.
    """

    def table(grid):
        if kind == "3d":
            return separable_positions(grid, width)
        return sincos_positions(int(np.prod(grid)), width)

    if source is None or source == grid:
        return table(grid)
    return interpolate_positions(table(source), source, grid, cubic=cubic)
