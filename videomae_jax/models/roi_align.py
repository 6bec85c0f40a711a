"""RoIAlign: the features inside boxes of a feature map, resampled to a fixed grid (1703.06870).

Bilinear samples at regular points are separable: the result is two matrix products without
gathers, and so are its gradients.
"""

import jax
import jax.numpy as jnp


def roi_align(
    features: jax.Array, boxes: jax.Array, *, size: int, ratio: int, aligned: bool
) -> jax.Array:
    """Return the features of each box, float32 [B, M, size, size, C].

    features: [B, H, W, C] of any dtype. boxes: float32 [B, M, 4], x1, y1, x2, y2 in cells of the
    map and within it. size: output cells along each axis. ratio: samples of an output cell along
    each axis; 0 takes as many as the cell is long in map cells, rounded up. aligned: whether the
    value of a map cell is that of its centre. False reads half a cell further to the right and
    bottom, and makes boxes at least one cell long; the released AVA models were trained with it.
    """
    height, width = features.shape[1:3]
    rows = sample_weights(
        boxes[..., 1], boxes[..., 3], length=height, size=size, ratio=ratio, aligned=aligned
    )
    columns = sample_weights(
        boxes[..., 0], boxes[..., 2], length=width, size=size, ratio=ratio, aligned=aligned
    )
    x = features.astype(jnp.float32)
    # Of the two orders the one with the smaller intermediate result: the shorter side remains.
    if height > width:
        products = [("bhwc,bmph->bmpwc", rows), ("bmpwc,bmqw->bmpqc", columns)]
    else:
        products = [("bhwc,bmqw->bmhqc", columns), ("bmhqc,bmph->bmpqc", rows)]
    for equation, weights in products:
        # These products are small. In bfloat16, the default of TPUs, the weights would be rounded.
        x = jnp.einsum(equation, x, weights, precision=jax.lax.Precision.HIGHEST)
    return x


def sample_weights(
    start: jax.Array, stop: jax.Array, *, length: int, size: int, ratio: int, aligned: bool
) -> jax.Array:
    """Return the weights of `length` map cells along one axis, float32 [..., size, length].

    start, stop: float32 [...], of the boxes, in map cells. The other arguments are those of
    `roi_align`. A sample more than one cell outside of the map has no weight.
    """
    extent = stop - start
    if aligned:
        start = start - 0.5
    else:
        extent = jnp.maximum(extent, 1)
    # The number of samples depends on the box: a static number of them is masked.
    most = ratio or -(-length // size)
    sample = jnp.arange(most)
    if ratio:
        count = jnp.full(extent.shape, ratio)
    else:
        # ceil(extent / size), but compiled code multiplies by 1 / size: 21 / 7 would be above 3.
        count = (sample * size < extent[..., None]).sum(-1)
    count = count[..., None, None]
    cell = jnp.arange(size)[:, None]
    inner = (sample + 0.5) / jnp.maximum(count, 1)
    points = start[..., None, None] + (cell + inner) * (extent / size)[..., None, None]
    counted = (sample < count) & (points >= -1) & (points <= length)
    centres = jnp.clip(points, 0, length - 1)[..., None]
    weights = jnp.maximum(0, 1 - jnp.abs(centres - jnp.arange(length)))
    weights = jnp.where(counted[..., None], weights, 0).sum(-2)
    return weights / jnp.maximum(count, 1)
