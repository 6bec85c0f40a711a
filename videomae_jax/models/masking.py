"""Which patches of a clip the encoder may see, and how to pick them out of a batch.

Start here: everything special about VideoMAE happens between these functions. A tube
mask hides the same spatial patches in every time step, so one row of spatial ids per
clip describes it. The sizes K and M are known before tracing, so a jitted step never
sees a boolean mask or a ragged shape.

The other kinds (random, frame, running_cell) hide different patches at different times.
They use the same structure with the whole clip as a single long time step: ids then
run over all N tokens instead of over the S patches of a step.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError

KINDS = ("tube", "random", "frame", "running_cell")
CELL = 2  # a running cell is 2 x 2 patches


class Mask(NamedTuple):
    """The patches of each clip, split in two; both rows ascending, together a partition.

    visible: int32 [B, K], masked: int32 [B, M]; ids in [0, K + M).
    K + M = S for tubes (every time step uses the same ids) and N for the other kinds.
    """

    visible: jax.Array
    masked: jax.Array

    @property
    def positions(self) -> int:
        """How many positions the ids choose from: S for tubes, N otherwise."""
        return self.visible.shape[-1] + self.masked.shape[-1]


def mask_counts(kind: str, grid: tuple[int, int, int], *, ratio: float) -> tuple[int, int]:
    """Return the static sizes (K, M) of a mask, in ids as `Mask` counts them.

    grid: (T, rows, columns) of patches. Every kind but "frame" hides int(ratio * S)
    patches per time step on average, the reference's rounding; "frame" hides
    int(ratio * T) whole time steps. Raises UserError when a mask would leave nothing
    visible or nothing to predict.
    """
    steps, rows, columns = grid
    patches = rows * columns
    if kind == "tube":
        total, masked, unit = patches, int(ratio * patches), patches
    elif kind == "random":
        # T * int(ratio * S), not int(ratio * N): the same cost as the tube it is compared to.
        total, masked, unit = steps * patches, steps * int(ratio * patches), patches
    elif kind == "frame":
        total, masked, unit = steps * patches, int(ratio * steps) * patches, steps
    elif kind == "running_cell":
        if rows % CELL or columns % CELL:
            raise UserError(
                f"running_cell masks need an even number of patches each way, not "
                f"{rows} x {columns}: use {rows + rows % CELL} x {columns + columns % CELL}"
            )
        quarter = ratio * CELL**2
        if quarter != int(quarter):
            raise UserError(
                f"running_cell masks hide quarters: mask ratio {ratio} is none, "
                f"use {min(max(round(quarter), 1), 3) / 4}"
            )
        total, masked, unit = steps * patches, int(ratio * steps * patches), CELL**2
    else:
        raise UserError(f"mask kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
    if not 0 < masked < total:
        side = "visible" if masked >= total else "masked"
        # Rounded inwards to four digits, so that the limits named are themselves legal.
        low, high = math.ceil(1e4 / unit) / 1e4, math.floor(1e4 * (1 - 1 / unit)) / 1e4
        raise UserError(
            f"mask ratio {ratio} of {unit} {'time steps' if kind == 'frame' else 'patches'} "
            f"leaves none {side}: use {low:.4f} to {high:.4f}"
        )
    return total - masked, masked


def draw_mask(keys: jax.Array, kind: str, *, grid: tuple[int, int, int], ratio: float) -> Mask:
    """Draw one mask per clip.

    keys: a [B] array of typed PRNG keys, one per clip; clip b depends on keys[b] alone,
    so the same key gives the same mask in any batch on any number of devices.
    """
    steps, rows, columns = grid
    patches = rows * columns
    visible, masked = mask_counts(kind, grid, ratio=ratio)

    def tube_or_random(key):
        order = jnp.argsort(jax.random.uniform(key, [visible + masked])).astype(jnp.int32)
        return Mask(jnp.sort(order[:visible]), jnp.sort(order[visible:]))

    def frame(key):
        order = jnp.argsort(jax.random.uniform(key, [steps])).astype(jnp.int32)

        def tokens(times):
            return (jnp.sort(times)[:, None] * patches + jnp.arange(patches)).reshape(-1)

        return Mask(tokens(order[: visible // patches]), tokens(order[visible // patches :]))

    def running_cell(key):
        # The hidden places of a 2 x 2 cell move on by one each time step, so nothing stays
        # hidden or visible for long; only where the run begins is random.
        start = jax.random.randint(key, [], 0, CELL**2)
        time, row, column = jnp.indices(grid, sparse=True)
        place = CELL * (row % CELL) + column % CELL
        hidden = (place - start - time) % CELL**2 < ratio * CELL**2
        return mask_from_bool(hidden.reshape(-1), masked=masked)

    draw = {"frame": frame, "running_cell": running_cell}.get(kind, tube_or_random)
    return jax.vmap(draw)(keys)


def mask_from_bool(hidden: jax.Array, *, masked: int) -> Mask:
    """Turn bool [..., K + M] (True is masked, `masked` of them in every row) into ids.

    The count is an argument because a traced array cannot set a shape.
    """
    # A stable sort of the flags lists first the visible ids, then the masked, both ascending.
    order = jnp.argsort(hidden, axis=-1, stable=True).astype(jnp.int32)
    split = hidden.shape[-1] - masked
    return Mask(order[..., :split], order[..., split:])


def as_tubes(tokens: jax.Array, mask: Mask) -> jax.Array:
    """View [B, N, ...] as [B, N / cells, cells, ...], the shape the ids of `mask` index."""
    batch, count = tokens.shape[:2]
    return tokens.reshape(batch, count // mask.positions, mask.positions, *tokens.shape[2:])


def gather_tubes(tokens: jax.Array, ids: jax.Array, mask: Mask) -> jax.Array:
    """Take the patches `ids` (mask.visible or mask.masked) out of every time step.

    tokens: [B, N, P] of any dtype, ids: int32 [B, K] -> [B, N * K / cells, P], raster order.
    """

    # One vmapped gather: indexing with an explicit arange over the batch makes XLA
    # all-gather a batch that is sharded over devices.
    def take(clip, rows):
        return clip.at[:, rows].get(
            mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
        )

    taken = jax.vmap(take)(as_tubes(tokens, mask), ids)
    return taken.reshape(tokens.shape[0], -1, *tokens.shape[2:])


def scatter_tubes(visible: jax.Array, masked: jax.Array, mask: Mask) -> jax.Array:
    """Put visible [B, T*K, P] and masked [B, T*M, P] back in place: [B, N, P].

    The inverse of two `gather_tubes`, itself a gather by the inverse permutation.
    """
    batch = visible.shape[0]
    count = visible.shape[1] + masked.shape[1]
    both = jnp.concatenate(
        [
            part.reshape(batch, count // mask.positions, -1, *part.shape[2:])
            for part in (visible, masked)
        ],
        axis=2,
    )
    inverse = jnp.argsort(jnp.concatenate(mask, axis=-1), axis=-1)

    def take(clip, rows):
        return clip.at[:, rows].get(mode="promise_in_bounds", unique_indices=True)

    return jax.vmap(take)(both, inverse).reshape(batch, count, *visible.shape[2:])


def mask_to_bool(mask: Mask, *, count: int) -> jax.Array:
    """Return bool [B, N = count], True where masked."""
    rank = jnp.argsort(jnp.concatenate(mask, axis=-1), axis=-1)
    hidden = rank >= mask.visible.shape[-1]
    return jnp.tile(hidden, [1, count // mask.positions])
