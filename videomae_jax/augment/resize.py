"""Resize clips on the device: Pillow's bilinear filter as two matrix products."""

import jax
import jax.numpy as jnp


def resize_clip(video: jax.Array, size: jax.Array, *, height: int, width: int) -> jax.Array:
    """Resize the filled part of a clip: uint8 [F, height, width, C].

    video: uint8 [F, H, W, C], filled from the top left corner. size: int32 [2], the height and
    the width of the filled part.
    The result is the same on all devices, and within one level of `data.resize.resize_part`. They
    differ where a mean is exactly between two levels, and where Pillow resizes columns first.
    """
    horizontal, row_sums = filter_weights(size[1], length=video.shape[2], target=width)
    vertical, column_sums = filter_weights(size[0], length=video.shape[1], target=height)
    # The products are sums of integers, exact in float32 and in what "high" means on other
    # devices: three passes of bfloat16, or one of tfloat32. The channels are moved first while
    # the pixels are bytes, which gives few and large products.
    x = video.transpose(0, 3, 1, 2).astype(jnp.float32)
    x = jnp.einsum("fchw,xw->fchx", x, horizontal, precision="high")
    # A mean can be exactly between two levels, where the error of the division would decide. The
    # quarter rounds such a mean up here, and down after the second product. Pillow rounds it as
    # its fixed-point weights happen to fall; with two roundings up, the result could be two
    # levels away from Pillow's.
    x = jnp.floor((x + 0.25) / row_sums + 0.5)
    x = jnp.einsum("fchx,yh->fcyx", x, vertical, precision="high")
    x = jnp.floor((x - 0.25) / column_sums[:, None] + 0.5)
    return x.astype(jnp.uint8).transpose(0, 2, 3, 1)


def filter_weights(size: jax.Array, *, length: int, target: int) -> tuple[jax.Array, jax.Array]:
    """Return the filter weights, float32 [target, length], and their sums [target].

    Row i has the weights with which pixel i of the result averages the first `size` of `length`
    pixels; the others get zero. The filter is a triangle around the centre of the pixel that
    extends one pixel to each side, a pixel of the source or of the result, whichever is larger,
    and that is cut off at the edges. The weights are integers, at most 2 max(size, target).
    """
    sources = 2 * jnp.arange(length) + 1
    centres = 2 * jnp.arange(target)[:, None] + 1
    weights = 2 * jnp.maximum(size, target) - jnp.abs(sources * target - centres * size)
    weights = jnp.where(jnp.arange(length) < size, jnp.maximum(weights, 0), 0).astype(jnp.float32)
    return weights, weights.sum(axis=-1)
