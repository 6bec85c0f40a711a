"""Token merging (ToMe, 2210.09461): in each block, the most similar tokens become one.

It needs no training, and makes an encoder faster. A merged token counts as many: its keys weigh
as much in the attention, and it weighs as much in the mean over tokens.
"""

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError


def merge_similar(
    x: jax.Array, keys: jax.Array, sizes: jax.Array, *, count: int
) -> tuple[jax.Array, jax.Array]:
    """Merge `count` tokens of [B, N, D] into others; return [B, N - count, D] and their sizes.

    keys: of the attention, [B, N, heads, d]; the cosine between their means over the heads says
    how similar two tokens are. sizes: float32 [B, N], of how many tokens each one is the mean.
    The tokens at even places look for the most similar token at an odd place. The `count` pairs
    with the highest cosines become one token, the mean of all tokens in it. Raises UserError
    unless count is 0 to N // 2.
    """
    tokens = x.shape[1]
    if not 0 <= count <= tokens // 2:
        raise UserError(
            f"{count} of {tokens} tokens cannot be merged in a block: use 0 to {tokens // 2}"
        )
    unit = keys.astype(jnp.float32).mean(2)
    unit *= jax.lax.rsqrt(jnp.square(unit).sum(-1, keepdims=True) + 1e-12)
    cosines = jnp.einsum("bnd,bmd->bnm", unit[:, ::2], unit[:, 1::2])
    order = jnp.argsort(-cosines.max(-1), axis=-1)
    merged, kept = order[:, :count], jnp.sort(order[:, count:])  # kept in their order
    target = _rows(cosines.argmax(-1), merged)
    # As a product of matrices: additions at indices are slow on CPUs and GPUs.
    into = jax.nn.one_hot(target, tokens // 2, dtype=jnp.float32)

    def merge(values):
        even, odd = values[:, ::2], values[:, 1::2]
        moved = _rows(even, merged)
        sums = odd + jnp.einsum("brm,brd->bmd", into, moved, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([_rows(even, kept), sums], axis=1)

    sums, total = merge(x * sizes[..., None]), merge(sizes[..., None])
    return (sums / total).astype(x.dtype), total[..., 0]


def _rows(values: jax.Array, ids: jax.Array) -> jax.Array:
    """Return the entries `ids`, int [B, n], of the second axis of [B, N, ...]."""
    return jax.vmap(lambda clip, index: clip[index])(values, ids)
