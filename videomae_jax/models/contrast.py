"""MoCo v3 (2104.02057) on videos: an encoder with a projector and a predictor, and their loss.

The two clips of a video are its views. Arrays are [N, 2, ...], both views of N videos, or [2 N,
...] before they are paired, where the clips of a video follow each other. All means are over the
whole array, so under `jit` they are those of the whole batch on any mesh.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from videomae_jax.models.encoder import VideoModel, uniform_fan_in
from videomae_jax.models.tokens import Triple
from videomae_jax.models.vit import Dense, xavier

EPSILON = 1e-5  # added to the variance of a batch


def pair_views(x: jax.Array) -> jax.Array:
    """Return the rows of clips, [2 N, ...], as views of videos, [N, 2, ...]."""
    return x.reshape(-1, 2, *x.shape[1:])


def _mean(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Return the mean of [N, ...] over the videos; weights: [N], None for equal ones."""
    if weights is None:
        return x.mean(0)
    weights = weights.reshape(-1, *[1] * (x.ndim - 1))
    return (weights * x).sum(0) / weights.sum()


class BatchNorm(nn.Module):
    """Normalization by the statistics of each view over the videos of the batch.

    There are no running averages: queries and keys both use the batch, and nothing else uses the
    heads. affine: with a learned scale and bias.
    """

    affine: bool

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Normalize [N, 2, C]; weights: [N], of each video in the statistics, None for 1."""
        centred = x - _mean(x, weights)
        # In two passes: the mean of squares minus the square of the mean loses digits.
        x = centred * jax.lax.rsqrt(_mean(jnp.square(centred), weights) + EPSILON)
        if not self.affine:
            return x
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class Head(nn.Module):
    """Dense layers without bias, each with batch normalization; ReLU between them.

    widths: of the outputs of the layers. The last normalization has no scale and no bias.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Map [N, 2, C] to [N, 2, widths[-1]] in the dtype of x; weights: see `BatchNorm`."""
        for layer, width in enumerate(self.widths, 1):
            last = layer == len(self.widths)
            init = uniform_fan_in(x.shape[-1])
            x = Dense(width, x.dtype, init, None, name=f"fc{layer}")(x)
            x = BatchNorm(affine=not last, name=f"norm{layer}")(x, weights)
            x = x if last else nn.relu(x)
        return x


class MoCo(VideoModel, kw_only=True):
    """The encoder, the projector of queries and keys, and the predictor of queries.

    hidden, dim: the widths of the heads inside and of their outputs. The other fields are those
    of `encoder.VideoModel`. The heads compute in float32: they cost nothing next to the encoder.
    """

    hidden: int
    dim: int

    def setup(self):
        self.video_encoder = self.build_encoder()
        self.projector = Head((self.hidden, self.hidden, self.dim))
        self.predictor = Head((self.hidden, self.dim))

    def __call__(self, patches: jax.Array, grid: Triple) -> jax.Array:
        """Return the queries of patches [2 N, N, P]: float32 [N, 2, dim]."""
        return self.queries(pair_views(self.features(patches, grid)))

    def features(self, patches: jax.Array, grid: Triple) -> jax.Array:
        """Return the mean token of each clip after the final norm, float32 [B, D]."""
        return self.video_encoder(patches, grid).astype(jnp.float32).mean(axis=1)

    def keys(self, features: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        """Return the projections of features [N, 2, D]; weights: see `BatchNorm`."""
        return self.projector(features, weights)

    def queries(self, features: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        """Return the predictions of the keys of the other view from features [N, 2, D]."""
        return self.predictor(self.projector(features, weights), weights)


def init_moco(model: MoCo, key: jax.Array, grid: Triple) -> dict:
    """Return random parameters: those of MoCo v3, which differ in two matrices from VideoMAE's.

    The matrices of queries, keys and values are Xavier-uniform each, not as one; the patch
    embedding is Xavier-uniform with a bias of 0.
    """
    patches = jnp.repeat(model.blank_patches(grid), 2, axis=0)
    params = model.init(key, patches, grid)["params"]
    encoder = params["encoder"]
    attention = encoder["blocks"]["attn"]
    # Uniform in sqrt(6 / (D + D)) instead of sqrt(6 / (D + 3 D)).
    attention = {**attention, "qkv": attention["qkv"] * math.sqrt(2)}
    embed = {
        "kernel": xavier(jax.random.fold_in(key, 1), encoder["embed"]["kernel"].shape),
        "bias": jnp.zeros_like(encoder["embed"]["bias"]),
    }
    blocks = {**encoder["blocks"], "attn": attention}
    return {**params, "encoder": {**encoder, "embed": embed, "blocks": blocks}}


def unit(x: jax.Array) -> jax.Array:
    """Return the vectors [..., C] at length 1, or 0 where they are 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def contrast_sums(
    queries: jax.Array,
    keys: jax.Array,
    *,
    temperature: float,
    weights: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Return the terms of loss and metrics of each video, [N].

    queries, keys: [N, 2, dim]. weights: [N], 1 for a video and 0 for a row that only fills up the
    batch, whose keys are left out; None for all 1.
    "error": the cross-entropy of finding the key of the other view of the video among those of
    all videos, times twice the temperature, summed over both directions. "match": the fraction
    of directions in which that key is the nearest. "positive", "negative": the mean cosine with
    it, and with the others. "count" is 1.
    """
    queries, keys = unit(queries), _everywhere(unit(keys)[:, ::-1])
    videos = len(queries)
    # A product of bfloat16 parts, the default of TPUs, would lose two digits of the logits.
    cosines = jnp.einsum("nvd,mvd->nvm", queries, keys, precision=jax.lax.Precision.HIGHEST)
    present = jnp.ones(videos, bool) if weights is None else weights > 0
    logits = jnp.where(present, cosines / temperature, -jnp.inf)
    index = jnp.arange(videos)[:, None]
    own = index == jnp.arange(videos)
    positive = jnp.einsum("nvm,nm->nv", cosines, own.astype(cosines.dtype))
    entropy = jax.nn.logsumexp(logits, axis=-1) - positive / temperature
    others = present & ~own
    negative = jnp.where(others[:, None], cosines, 0).sum(-1) / jnp.maximum(
        others.sum(-1, keepdims=True), 1
    )
    return {
        "error": 2 * temperature * entropy.sum(-1),
        "match": (logits.argmax(-1) == index).astype(cosines.dtype).mean(-1),
        "positive": positive.mean(-1),
        "negative": negative.mean(-1),
        "count": jnp.ones(videos, cosines.dtype),
    }


def feature_spread(features: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Return the standard deviation of features [N, 2, D] at unit length, over all channels.

    It is 0 if all videos have the same feature, and 1 if the mean of the unit vectors is 0.
    weights: see `BatchNorm`.
    """
    units = unit(features)
    variance = _mean(jnp.square(units - _mean(units, weights)), weights).sum(-1)
    return jnp.sqrt(variance).mean()


def _everywhere(keys: jax.Array) -> jax.Array:
    """Replicate the keys: one gather of them, and the logits stay split by rows."""
    if jax.sharding.get_abstract_mesh().empty:
        return keys
    return jax.lax.with_sharding_constraint(keys, P())
