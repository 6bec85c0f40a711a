"""Masks: which patches of a clip are visible to the encoder, and how to gather them.

Read this module first: it is what distinguishes VideoMAE from other transformers. A tube mask
hides the same spatial patches in every time step, so one row of spatial ids per clip describes
it. The sizes K and M are known before tracing, so a jitted step has no boolean mask and no
ragged shape.

The other kinds (random, frame, running_cell) hide different patches at different times. They
use the same structure with the whole clip as one long time step: the ids then number all N
tokens instead of the S patches of a time step.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.models.tokens import Triple

KINDS = ("tube", "random", "frame", "running_cell")
CELL = 2  # a running cell is 2 x 2 patches


class Mask(NamedTuple):
    """The visible and the masked patches of each clip: a partition, both in ascending order.

    visible: int32 [B, K]. masked: int32 [B, M]. The ids are in [0, `positions`), and
    `positions` = K + M is S for tubes, where all time steps use the same ids, and N for the
    other kinds.
    """

    visible: jax.Array
    masked: jax.Array

    @property
    def positions(self) -> int:
        """The number of positions that the ids index: S for tubes, N for the other kinds."""
        return self.visible.shape[-1] + self.masked.shape[-1]


def mask_counts(kind: str, grid: Triple, *, ratio: float) -> tuple[int, int]:
    """Return the static sizes (K, M) of `Mask.visible` and `Mask.masked`.

    grid: (T, rows, columns) of patches. ratio: the fraction to hide, in (0, 1). Every kind but
    "frame" hides int(ratio * S) patches per time step on average, rounded as in the
    reference; "frame" hides int(ratio * T) whole time steps.
    Raises UserError for an unknown kind, and when nothing would be visible or nothing masked.
    """
    steps, rows, columns = grid
    patches = rows * columns
    if not math.isfinite(ratio):
        raise UserError(f"mask ratio {ratio}: use above 0 and below 1, such as 0.9")
    if kind == "tube":
        total, masked, unit = patches, int(ratio * patches), patches
    elif kind == "random":
        # T * int(ratio * S), not int(ratio * N): the same cost as a tube mask.
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
        # Rounded inwards to four digits, so that the limits in the message are legal.
        low, high = math.ceil(1e4 / unit) / 1e4, math.floor(1e4 * (1 - 1 / unit)) / 1e4
        raise UserError(
            f"mask ratio {ratio} of {unit} {'time steps' if kind == 'frame' else 'patches'} "
            f"leaves none {side}: use {low:.4f} to {high:.4f}"
        )
    return total - masked, masked


def draw_mask(keys: jax.Array, kind: str, *, grid: Triple, ratio: float) -> Mask:
    """Draw one mask per clip.

    keys: typed PRNG keys [B], one per clip. Clip b depends on keys[b] only, so the same key
    gives the same mask in any batch and on any number of devices. kind, grid, ratio: see
    `mask_counts`. Masks of one key are nested: with a smaller ratio, all that the larger one
    leaves visible is visible, and more.
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
        # The hidden patches of a 2 x 2 cell move by one in each time step, so no patch stays
        # hidden or visible for long. Only the start is random.
        start = jax.random.randint(key, [], 0, CELL**2)
        time, row, column = jnp.indices(grid, sparse=True)
        within_cell = CELL * (row % CELL) + column % CELL
        hidden = (within_cell - start - time) % CELL**2 < ratio * CELL**2
        return mask_from_bool(hidden.reshape(-1), masked=masked)

    draw = {"frame": frame, "running_cell": running_cell}.get(kind, tube_or_random)
    return jax.vmap(draw)(keys)


def mask_from_bool(hidden: jax.Array, *, masked: int) -> Mask:
    """Convert bool [..., K + M], True where masked, to a `Mask`.

    masked: M, the number of True values in each row. It is an argument because a traced array
    cannot determine a shape.
    """
    # A stable sort of the flags gives the visible ids and then the masked ids, both ascending.
    order = jnp.argsort(hidden, axis=-1, stable=True).astype(jnp.int32)
    split = hidden.shape[-1] - masked
    return Mask(order[..., :split], order[..., split:])


def mask_within(mask: Mask, wider: Mask) -> Mask:
    """Return which of the patches that `wider` leaves visible are visible in `mask` too.

    mask: leaves no other patches visible, as nested masks of one key do. The ids of the result
    are places in `wider.visible`; its masked patches are those that are visible in `wider` only.
    """
    hidden = jnp.take_along_axis(
        mask_to_bool(mask, count=mask.positions), wider.visible, axis=1, mode="promise_in_bounds"
    )
    return mask_from_bool(hidden, masked=wider.visible.shape[1] - mask.visible.shape[1])


def as_tubes(tokens: jax.Array, mask: Mask) -> jax.Array:
    """Reshape [B, N, ...] to [B, N / positions, positions, ...], which the ids of `mask` index."""
    batch, count = tokens.shape[:2]
    return tokens.reshape(batch, count // mask.positions, mask.positions, *tokens.shape[2:])


def gather_tubes(tokens: jax.Array, ids: jax.Array, mask: Mask) -> jax.Array:
    """Gather the patches `ids` of every time step.

    tokens: [B, N, P] of any dtype. ids: int32 [B, K], mask.visible or mask.masked.
    Returns [B, N * K / mask.positions, P] in raster order.
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
    """Merge visible [B, T*K, P] and masked [B, T*M, P] tokens in raster order: [B, N, P].

    Undoes two `gather_tubes`. It is a gather too, by the inverse permutation.
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
    """Return bool [B, N], True where masked; count: N."""
    rank = jnp.argsort(jnp.concatenate(mask, axis=-1), axis=-1)
    hidden = rank >= mask.visible.shape[-1]
    return jnp.tile(hidden, [1, count // mask.positions])
