"""The resizing of clips on the device: Pillow's bilinear filter as two matrix products."""

import jax
import jax.numpy as jnp


def resize_clip(video: jax.Array, size: jax.Array, *, height: int, width: int) -> jax.Array:
    """Resize the part of a clip that is filled: uint8 [F, height, width, C].

    video: uint8 [F, H, W, C], filled from the top left corner. size: int32 [2], the height and
    the width of that. The same on all devices, and within one level of `clips.resize_crop`: the
    means that fall on a half differ, and pictures of which Pillow resizes the columns first.
    """
    across, across_total = filter_weights(size[1], room=video.shape[2], target=width)
    down, down_total = filter_weights(size[0], room=video.shape[1], target=height)
    # Sums of whole numbers, exact in float32 and in the three passes of bfloat16 or the one of
    # tfloat32 that "high" is elsewhere. Channels first, while pixels are bytes: large products.
    x = video.transpose(0, 3, 1, 2).astype(jnp.float32)
    x = jnp.einsum("fchw,xw->fchx", x, across, precision="high")
    # The quarter rounds a half up here, and in the second product down, whatever a division does
    # to it. Pillow's way with halves is that of its fixed point; up twice, we could be two levels
    # from it.
    x = jnp.floor((x + 0.25) / across_total + 0.5)
    x = jnp.einsum("fchx,yh->fcyx", x, down, precision="high")
    x = jnp.floor((x - 0.25) / down_total[:, None] + 0.5)
    return x.astype(jnp.uint8).transpose(0, 2, 3, 1)


def filter_weights(size: jax.Array, *, room: int, target: int) -> tuple[jax.Array, jax.Array]:
    """Return what each of `target` pixels takes of `size`, [target, room], and the sums [target].

    A triangle around the pixel's centre, one pixel of the coarser of the two sides wide to
    either side, cut off at the edges. In whole numbers: 2 max(size, target) at its top.
    """
    pixels, places = 2 * jnp.arange(room) + 1, (2 * jnp.arange(target) + 1)[:, None]
    weights = 2 * jnp.maximum(size, target) - jnp.abs(pixels * target - places * size)
    weights = jnp.where(jnp.arange(room) < size, jnp.maximum(weights, 0), 0).astype(jnp.float32)
    return weights, weights.sum(axis=-1)
