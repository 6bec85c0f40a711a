"""VideoMAE: encode the visible tenth of a clip, decode all of it, predict what was hidden.

Tong, Song, Wang and Wang, "VideoMAE: Masked Autoencoders are Data-Efficient Learners for
Self-Supervised Video Pre-Training", NeurIPS 2022.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.masking import Mask, gather_tubes, mask_to_bool
from videomae_jax.models.tokens import Triple, normalize_pixels, pixel_targets, positions
from videomae_jax.models.vit import (
    Affine,
    Dense,
    Execution,
    LayerNorm,
    Size,
    apply_blocks,
    standardize,
    xavier,
)


def _one_over_root(fan_in: int):
    """The uniform +-1/sqrt(fan_in) a PyTorch layer starts from where the reference sets none."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _mask_token(key, shape, dtype=jnp.float32):
    """Normal 0.02, cut at one sigma."""
    return 0.02 * jax.random.truncated_normal(key, -1, 1, shape, dtype)


class Encoder(nn.Module):
    """Patch embedding, positions, blocks and the final norm, on whatever tokens it is given.

    final_norm: fine-tuning does without, its norm comes after the pooling. drop_path: see
    `vit.apply_blocks`.
    """

    size: Size
    run: Execution
    final_norm: bool = True
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self, patches: jax.Array, places: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Encode normalized patches float32 [B, n, P] at positions float32 [B or 1, n, D].

        keys: typed PRNG keys [B] for drop path; None drops nothing. Returns [B, n, D] in the
        compute dtype.
        """
        init = _one_over_root(patches.shape[-1])
        # A dense layer on flattened pixels is the reference's strided Conv3d.
        embed = Dense(self.size.width, self.run.dtype, init, init, name="embed")
        x = embed(patches) + places.astype(self.run.dtype)
        x = apply_blocks(x, self.size, self.run, drop_path=self.drop_path, keys=keys)
        return LayerNorm(self.run.dtype, name="norm")(x) if self.final_norm else x


class Decoder(nn.Module):
    """A narrow transformer, and a head on the masked tokens.

    attention: "self", the paper's: all tokens attend to all. "cross": the masked ones attend to
    the visible, never to each other, and the visible stay as they are (CrossMAE, 2401.14391).
    """

    size: Size
    run: Execution
    outputs: int
    attention: str

    @nn.compact
    def __call__(self, visible: jax.Array, hidden: jax.Array) -> jax.Array:
        """[B, n, Dd] and [B, m, Dd] -> float32 [B, m, P]."""
        if self.attention == "cross":
            x = apply_blocks(hidden, self.size, self.run, context=visible)
        else:
            # Visible first, then masked, never put back in raster order: attention does not
            # care, each token carries its position, and the head needs only the masked tail.
            both = jnp.concatenate([visible, hidden], axis=1)
            x = apply_blocks(both, self.size, self.run, last=hidden.shape[1])
        head = Dense(self.outputs, self.run.dtype, xavier, name="head")
        x = head(standardize(x, self.run.dtype), Affine(self.size.width, name="norm"))
        return x.astype(jnp.float32)


class VideoMAE(nn.Module):
    """The pre-training model. The mask is an input: nothing random happens here.

    encoder, decoder: the two transformers. decoder_attention: see `Decoder`.
    patch: (frames, height, width) of a tubelet.
    mean, std: pixel statistics; their length is the number of channels. position_grid: the
    grid the position tables are made for, interpolated to the clip's; None makes them for
    the clip's own, as the reference does.
    """

    encoder: Size
    decoder: Size
    patch: Triple
    mean: tuple[float, ...]
    std: tuple[float, ...]
    position_grid: Triple | None = None
    run: Execution = Execution()
    decoder_attention: str = "self"

    def setup(self):
        outputs = math.prod(self.patch) * len(self.mean)
        width = self.decoder.width
        self.video_encoder = Encoder(self.encoder, self.run, name="encoder")
        self.video_decoder = Decoder(
            self.decoder, self.run, outputs, self.decoder_attention, name="decoder"
        )
        self.mask_token = self.param("mask_token", _mask_token, (width,))
        self.encoder_to_decoder = Dense(
            width, self.run.dtype, _one_over_root(self.encoder.width), bias_init=None
        )

    def __call__(
        self, patches: jax.Array, mask: Mask, grid: Triple, decoded: Mask | None = None
    ) -> jax.Array:
        """Predict the targets of the masked patches.

        patches: uint8 [B, N, P], all of them (only the visible are read). decoded: predict
        only the patches this mask leaves visible (VideoMAE V2's dual masking).
        Returns float32 [B, n, P] in the order of `predicted_patches`.
        """
        visible = self.encoder_to_decoder(self.encode(patches, mask, grid))
        places = self._places(grid, self.decoder.width, batch=patches.shape[0])
        visible += gather_tubes(places, mask.visible, mask).astype(visible.dtype)
        hidden = self.mask_token + predicted_patches(places, mask, decoded)
        return self.video_decoder(visible, hidden.astype(visible.dtype))

    def encode(self, patches: jax.Array, mask: Mask, grid: Triple) -> jax.Array:
        """Encode the visible patches of uint8 [B, N, P]: [B, N * K / cells, D]."""
        # Raw uint8 patches are gathered before they are embedded: a tenth of the work, and
        # pixels need no gradient.
        visible = normalize_pixels(gather_tubes(patches, mask.visible, mask), self.mean, self.std)
        places = self._places(grid, self.encoder.width, batch=patches.shape[0])
        return self.video_encoder(visible, gather_tubes(places, mask.visible, mask))

    def _places(self, grid: Triple, width: int, *, batch: int) -> jax.Array:
        """The position table, float32 [B, N, D], the same for every clip."""
        table = positions(grid, width, source=self.position_grid)
        return jnp.broadcast_to(table, (batch, *table.shape))


def predicted_patches(tokens: jax.Array, mask: Mask, decoded: Mask | None = None) -> jax.Array:
    """Take from [B, N, P] the patches the decoder predicts, [B, n, P], in its order.

    All masked ones, or with `decoded` those it leaves visible, whether masked or not.
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
    """Return what the loss and its yardsticks are made of, per clip, float32 [B] each.

    Sums over the masked patches among the predicted ones: "error" of the squared error (the
    mean over a patch's values), "square" and "target" of the squared and plain target, and
    their number, "count". Sums, so that batches of any size add up exactly.
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
        # The decoder also meets patches the encoder saw: they cost nothing, they teach nothing.
        hidden = mask_to_bool(mask, count=patches.shape[1])
        weight = predicted_patches(hidden, mask, decoded).astype(jnp.float32)
        values = {name: value * weight for name, value in values.items()}
    return {name: value.sum(-1) for name, value in values.items()}
