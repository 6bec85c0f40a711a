"""Probes: small heads on the tokens of a frozen encoder, trained side by side.

The parameters under "encoder" are those of `mae.VideoMAE`, its final norm included: what a
probe measures is what pre-training put out. Those under "heads" have a leading [R] axis, one
entry per head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.mae import Encoder
from videomae_jax.models.tokens import Triple, normalize_pixels, positions
from videomae_jax.models.vit import Execution, Size, xavier

KINDS = ("linear", "attentive")


class Head(nn.Module):
    """Tokens pooled to one vector, then a matrix that begins at zero.

    kind: "linear" takes the mean token, "attentive" what a learned query finds.
    """

    kind: str
    classes: int
    attention_heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Float32 [B, N, D] -> logits [B, classes]."""
        pooled = self._attend(tokens) if self.kind == "attentive" else tokens.mean(axis=1)
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="linear")(pooled)

    def _attend(self, tokens):
        """Cross-attention of one query, [B, N, D] -> [B, D].

        With one query the projection of the keys is a part of it, and that of the values may
        follow the pooling: the same functions, without a matrix product per token.
        """
        width, heads = tokens.shape[-1], self.attention_heads

        def split(key, shape):
            return xavier(key, (width, width)).reshape(shape)

        query = self.param("query", nn.initializers.normal(0.02), (heads, width))
        value = self.param("value", split, (width, heads, width // heads))
        scores = jnp.einsum("bnw,hw->bhn", tokens, query) * width**-0.5
        pooled = jnp.einsum("bhn,bnw->bhw", jax.nn.softmax(scores), tokens)
        return jnp.einsum("bhw,whd->bhd", pooled, value).reshape(-1, width)


class Probe(nn.Module):
    """A frozen encoder and `heads` heads of one kind, which all begin alike.

    encoder, patch, mean, std, position_grid, run: as in `mae.VideoMAE`. head: one of `KINDS`.
    """

    encoder: Size
    patch: Triple
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    head: str
    heads: int
    position_grid: Triple | None = None
    run: Execution = Execution()

    def setup(self):
        self.video_encoder = Encoder(self.encoder, self.run, name="encoder")
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

        patches: uint8, or float32 on the same scale of 0 to 255 after augmentation. No
        gradient goes into the encoder.
        """
        places = positions(grid, self.encoder.width, source=self.position_grid)
        pixels = normalize_pixels(patches, self.mean, self.std)
        tokens = jax.lax.stop_gradient(self.video_encoder(pixels, places[None]))
        return self.head_stack(tokens.astype(jnp.float32))
