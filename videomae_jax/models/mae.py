"""VideoMAE: encode the visible tenth of a clip, decode all of it, predict the masked patches.

Tong, Song, Wang and Wang, "VideoMAE: Masked Autoencoders are Data-Efficient Learners for
Self-Supervised Video Pre-Training", NeurIPS 2022.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.encoder import VideoModel, broadcast_to_clips, uniform_fan_in
from videomae_jax.models.masking import Mask, gather_tubes, mask_to_bool
from videomae_jax.models.tokens import Triple, pixel_targets, positions
from videomae_jax.models.vit import (
    Affine,
    Dense,
    Execution,
    Size,
    apply_blocks,
    standardize,
    xavier,
)


def init_mask_token(key, shape, dtype=jnp.float32):
    """Draw from a normal distribution of deviation 0.02, truncated at one sigma."""
    return 0.02 * jax.random.truncated_normal(key, -1, 1, shape, dtype)


class Decoder(nn.Module):
    """A narrow transformer, and a head on the masked tokens.

    attention: "self" (the paper): all tokens attend to all tokens. "cross": the masked tokens
    attend to the visible ones, never to each other, and the visible ones do not change
    (CrossMAE, 2401.14391). outputs: P, the values per predicted patch.
    """

    size: Size
    run: Execution
    outputs: int
    attention: str

    @nn.compact
    def __call__(self, visible: jax.Array, hidden: jax.Array) -> jax.Array:
        """Predict float32 [B, m, P] from visible tokens [B, n, Dd] and masked tokens [B, m, Dd]."""
        if self.attention == "cross":
            x = apply_blocks(hidden, self.size, self.run, context=visible)
        else:
            # Visible tokens first, then masked ones. Raster order is not needed: attention does
            # not depend on the order, and the head reads only the masked tokens at the end.
            both = jnp.concatenate([visible, hidden], axis=1)
            x = apply_blocks(both, self.size, self.run, last=hidden.shape[1])
        head = Dense(self.outputs, self.run.dtype, xavier, name="head")
        x = head(standardize(x, self.run.dtype), Affine(self.size.width, name="norm"))
        return x.astype(jnp.float32)


class VideoMAE(VideoModel, kw_only=True):
    """The pre-training model. The mask is an input, so nothing is random.

    decoder: the size of the decoder. decoder_attention: see `Decoder`. The other fields are
    those of `encoder.VideoModel`.
    """

    decoder: Size
    decoder_attention: str = "self"

    def setup(self):
        width = self.decoder.width
        self.video_encoder = self.build_encoder()
        self.video_decoder = Decoder(
            self.decoder, self.run, self.values, self.decoder_attention, name="decoder"
        )
        self.mask_token = self.param("mask_token", init_mask_token, (width,))
        self.encoder_to_decoder = Dense(
            width, self.run.dtype, uniform_fan_in(self.encoder.width), bias_init=None
        )

    def __call__(
        self, patches: jax.Array, mask: Mask, grid: Triple, decoded: Mask | None = None
    ) -> jax.Array:
        """Predict the targets of the masked patches.

        patches: uint8 [B, N, P], masked ones included; only the visible are read. grid:
        (T, rows, columns). decoded: predict only the patches this mask leaves visible
        (the dual masking of VideoMAE V2).
        Returns float32 [B, n, P] in the order of `predicted_patches`.
        """
        return self.decode(self.encode(patches, mask, grid), mask, grid, decoded)

    def encode(self, patches: jax.Array, mask: Mask, grid: Triple) -> jax.Array:
        """Encode the visible patches of uint8 [B, N, P]: [B, T * K, D] in the compute dtype."""
        return self.video_encoder(patches, grid, mask=mask)

    def decode(
        self, tokens: jax.Array, mask: Mask, grid: Triple, decoded: Mask | None = None
    ) -> jax.Array:
        """Predict the targets of the masked patches from `encode`d tokens [B, T * K, D]."""
        visible = self.encoder_to_decoder(tokens)
        table = positions(grid, self.decoder.width, kind=self.positions, source=self.position_grid)
        every = broadcast_to_clips(table, tokens.shape[0])
        visible += gather_tubes(every, mask.visible, mask).astype(visible.dtype)
        hidden = self.mask_token + predicted_patches(every, mask, decoded)
        return self.video_decoder(visible, hidden.astype(visible.dtype))


def predicted_patches(tokens: jax.Array, mask: Mask, decoded: Mask | None = None) -> jax.Array:
    """Return the patches [B, n, P] of [B, N, P] that the decoder predicts, in its order.

    These are the masked patches or, if given, the patches that `decoded` leaves visible,
    whether they are masked or not.
    """
    if decoded is None:
        return gather_tubes(tokens, mask.masked, mask)
    return gather_tubes(tokens, decoded.visible, decoded)


def reconstruction_sums(
    prediction: jax.Array,
    patches: jax.Array,
    mask: Mask,
    *,
    decoded: Mask | None = None,
    channels: int,
    normalized: bool,
) -> dict[str, jax.Array]:
    """Return the sums from which the loss and its baselines are computed, float32 [B] each.

    prediction: float32 [B, n, P]. patches: uint8 [B, N, P]. normalized: see `pixel_targets`.
    Each is a sum over the masked patches of a clip that are predicted: "error" (squared error,
    averaged over the values of a patch), "square" and "target" (the squared and the plain
    target, averaged likewise) and "count". Sums of any batches can be added exactly.
    """
    targets = pixel_targets(
        predicted_patches(patches, mask, decoded), channels, normalized=normalized
    )
    values = {
        "error": jnp.square(prediction - targets).mean(-1),
        "square": jnp.square(targets).mean(-1),
        "target": targets.mean(-1),
        "count": jnp.ones(targets.shape[:2]),
    }
    if decoded is not None:
        # The decoder also predicts patches that the encoder saw: they do not count in the loss.
        hidden = mask_to_bool(mask, count=patches.shape[1])
        weight = predicted_patches(hidden, mask, decoded).astype(jnp.float32)
        values = {name: value * weight for name, value in values.items()}
    return {name: value.sum(-1) for name, value in values.items()}
