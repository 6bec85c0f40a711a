"""One number for each array of a tree, by which a damaged checkpoint is known."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.training.sharding import path_name

# Odd constants of the murmur3 hash.
MULTIPLY = (0x85EBCA6B, 0xC2B2AE35)


def digests(tree: Any) -> dict[str, int]:
    """Return {"encoder/norm/scale": number, ...}: the same on any mesh, in any order of adding.

    The sum of the bits of every value, as an integer, times an odd hash of its index, modulo
    2^32. Any one changed value changes it, since the hash, being odd, can be divided by.
    """
    numbers = jax.device_get(_digests(tree))
    return {path_name(path): int(n) for path, n in jax.tree_util.tree_leaves_with_path(numbers)}


@jax.jit
def _digests(tree):
    return jax.tree.map(_digest, tree)


def _digest(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(leaf, np.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :])
        index += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride)
    index ^= index >> 16
    for constant in MULTIPLY:
        index *= np.uint32(constant)
        index ^= index >> 14
    return jnp.sum(words.astype(jnp.uint32) * (index | 1), dtype=jnp.uint32)
