"""The encoder of video patches, and the fields that every model around it has."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from videomae_jax.models.masking import Mask, gather_tubes
from videomae_jax.models.tokens import Triple, normalize_pixels, positions
from videomae_jax.models.vit import Dense, Execution, LayerNorm, Size, apply_parts, merge_blocks


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Return the uniform distribution in +-1/sqrt(fan_in), PyTorch's default for a layer.

    For the layers that the reference does not initialize itself.
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Encoder(nn.Module):
    """Pixel normalization, patch embedding, positions, blocks and the final norm.

    mean, std, position_grid, positions: see `VideoModel`. final_norm: False in fine-tuning, which
    normalizes after pooling instead. drop_path: see `vit.apply_parts`. cubic_positions: how
    they are interpolated, see `tokens.interpolate_positions`. merge_tokens: see `VideoModel`.
    """

    size: Size
    run: Execution
    mean: tuple[float, ...]
    std: tuple[float, ...]
    position_grid: Triple | None
    positions: str
    final_norm: bool = True
    drop_path: float = 0.0
    cubic_positions: bool = False
    merge_tokens: int = 0

    def setup(self):
        self.norm = LayerNorm(self.run.dtype)

    def __call__(
        self,
        patches: jax.Array,
        grid: Triple,
        *,
        mask: Mask | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Encode the patches [B, N, P] of clips, or only the ones that a mask leaves visible.

        patches: uint8, or float32 in [0, 255]. grid: (T, rows, columns), N in all. keys: typed
        PRNG keys [B] for drop path; None drops nothing.
        Returns [B, n, D] in the compute dtype; n is N without a mask, else T * K. With
        `merge_tokens`, n is smaller, and each token is multiplied by its share of the N tokens
        and by n: the mean over the tokens is then the mean over all N.
        """
        x = self.part_outputs(patches, grid, (self.size.depth,), mask=mask, keys=keys)[-1]
        return x if self.merge_tokens else self.normalize(x)

    def normalize(self, x: jax.Array) -> jax.Array:
        """Apply the final norm, if the encoder has one, to tokens [B, n, D]."""
        # A model of transformers that was made for pooling has a decoder, but no such parameters.
        normed = self.is_initializing() or self.has_variable("params", "norm")
        return self.norm(x) if self.final_norm and normed else x

    @nn.compact
    def part_outputs(
        self,
        patches: jax.Array,
        grid: Triple,
        parts: tuple[int, ...],
        *,
        mask: Mask | None = None,
        keys: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Return the tokens [B, n, D] after each part of the blocks, without the final norm.

        parts: see `vit.apply_parts`. The other arguments are those of a call. With `merge_tokens`
        there is one part, and what it returns is what a call returns.
        """
        table = positions(
            grid,
            self.size.width,
            kind=self.positions,
            source=self.position_grid,
            cubic=self.cubic_positions,
        )
        init = uniform_fan_in(patches.shape[-1])
        # A dense layer on flattened pixels is the reference's strided Conv3d.
        embed = Dense(self.size.width, self.run.dtype, init, init, name="embed")
        if mask is None:
            positioned = jnp.asarray(table[None], self.run.dtype)
        else:
            # Raw uint8 patches are gathered before they are normalized and embedded: a tenth of
            # the work, and pixels need no gradient.
            patches = gather_tubes(patches, mask.visible, mask)
            every = broadcast_to_clips(table, patches.shape[0])
            positioned = gather_tubes(every, mask.visible, mask).astype(self.run.dtype)
        x = embed(normalize_pixels(patches, self.mean, self.std)) + positioned
        if self.merge_tokens:
            return [self._merge(x)]
        return apply_parts(x, self.size, self.run, parts, drop_path=self.drop_path, keys=keys)

    def _merge(self, x: jax.Array) -> jax.Array:
        """Apply the blocks and the final norm to [B, N, D], and merge tokens; see a call."""
        count = x.shape[1]
        layers: Any = self.get_variable("params", "blocks")
        x, sizes = merge_blocks(x, layers, self.size, self.run, merge=self.merge_tokens)
        return self.normalize(x) * (sizes * (x.shape[1] / count))[..., None].astype(x.dtype)


class VideoModel(nn.Module):
    """The fields of every model: the encoder, the pixels it reads, and how it is executed.

    encoder: the size of the encoder. patch: (frames, height, width) of a tubelet.
    mean, std: pixel statistics; their length is the number of channels. position_grid: the
    grid whose position table is interpolated to the clip's grid; None computes the table for
    the clip's own grid, as the reference does. positions: the kind of the table, see
    `tokens.positions`. merge_tokens: in inference, how many tokens each block of the encoder
    merges into others, see `merging`.
    """

    encoder: Size
    patch: Triple
    mean: tuple[float, ...]
    std: tuple[float, ...]
    position_grid: Triple | None = None
    positions: str = "1d"
    run: Execution = Execution()
    merge_tokens: int = 0

    @property
    def values(self) -> int:
        """The number of values of a patch, P."""
        return math.prod(self.patch) * len(self.mean)

    @nn.nowrap
    def build_encoder(
        self, *, final_norm: bool = True, drop_path: float = 0.0, cubic_positions: bool = False
    ) -> Encoder:
        """Return the encoder; its parameters are under "encoder" in all models."""
        return Encoder(
            self.encoder,
            self.run,
            self.mean,
            self.std,
            self.position_grid,
            self.positions,
            final_norm,
            drop_path,
            cubic_positions,
            self.merge_tokens,
            name="encoder",
        )

    @nn.nowrap
    def blank_patches(self, grid: Triple) -> jax.Array:
        """Return the patches of one black clip, uint8 [1, N, P], to initialize the model with."""
        return jnp.zeros([1, math.prod(grid), self.values], jnp.uint8)


def broadcast_to_clips(table: np.ndarray, batch: int) -> jax.Array:
    """Repeat a position table [N, D] for each of `batch` clips: [B, N, D]."""
    return jnp.broadcast_to(table, (batch, *table.shape))
