"""Probes: small heads on the tokens of a frozen encoder, trained side by side.

The parameters under "encoder" are those of `mae.VideoMAE`, including its final norm: a probe
measures the features that pre-training produced. Those under "heads" have a leading [R] axis,
one entry per head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.tokens import Triple
from videomae_jax.models.vit import xavier

KINDS = ("linear", "attentive")


class Head(nn.Module):
    """Tokens pooled to one vector, then a linear layer that starts at zero.

    kind: "linear" pools by the mean, "attentive" by attention with a learned query.
    attention_heads: of the attentive head.
    """

    kind: str
    classes: int
    attention_heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits, float32 [B, classes], of tokens float32 [B, N, D]."""
        pooled = self._attend(tokens) if self.kind == "attentive" else tokens.mean(axis=1)
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="linear")(pooled)

    def _attend(self, tokens):
        """Pool [B, N, D] to [B, D] by cross-attention with one query.

        With one query, the projection of the keys can be merged into it, and the projection of
        the values can follow the pooling: this computes the same functions without a matrix
        product per token.
        """
        width, heads = tokens.shape[-1], self.attention_heads

        def split(key, shape):
            return xavier(key, (width, width)).reshape(shape)

        query = self.param("query", nn.initializers.normal(0.02), (heads, width))
        value = self.param("value", split, (width, heads, width // heads))
        scores = jnp.einsum("bnw,hw->bhn", tokens, query) * width**-0.5
        pooled = jnp.einsum("bhn,bnw->bhw", jax.nn.softmax(scores), tokens)
        return jnp.einsum("bhw,whd->bhd", pooled, value).reshape(-1, width)


class Probe(VideoModel, kw_only=True):
    """A frozen encoder and `heads` heads of one kind, which all start with the same weights.

    head: one of `KINDS`. The other fields are those of `encoder.VideoModel`.
    """

    classes: int
    head: str
    heads: int

    def setup(self):
        self.video_encoder = self.build_encoder()
        stack = nn.vmap(
            Head,
            in_axes=None,
            out_axes=1,
            axis_size=self.heads,
            variable_axes={"params": 0},
            split_rngs={"params": False},
        )
        self.head_stack = stack(self.head, self.classes, self.encoder.heads, name="heads")

    def __call__(self, patches: jax.Array, grid: Triple) -> jax.Array:
        """Return logits, float32 [B, heads, classes], of patches [B, N, P].

        patches: uint8, or float32 in [0, 255] after augmentation. grid: (T, rows, columns).
        The encoder gets no gradient.
        """
        tokens = jax.lax.stop_gradient(self.video_encoder(patches, grid))
        return self.head_stack(tokens.astype(jnp.float32))
