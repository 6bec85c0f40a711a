"""A fine-tuned encoder: all patches of a clip, the mean over the tokens, a linear head.

The parameters under "encoder" are those of `mae.VideoMAE`, without its final norm.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.tokens import Triple
from videomae_jax.models.vit import LayerNorm

# The reference truncates this distribution at +-2. That is a hundred sigmas, so it has no effect.
linear = nn.initializers.normal(0.02)

# The head starts near zero: equal logits, and small gradients in the encoder.
init_head = nn.initializers.normal(0.02 * 0.001)


class VideoClassifier(VideoModel, kw_only=True):
    """The fine-tuning model. Nothing is random unless keys are given.

    drop_path: rate of the last block, see `vit.apply_parts`. head_dropout: the probability
    that a feature is dropped before the head. The other fields are those of
    `encoder.VideoModel`.
    """

    classes: int
    drop_path: float = 0.0
    head_dropout: float = 0.0

    def setup(self):
        self.video_encoder = self.build_encoder(final_norm=False, drop_path=self.drop_path)
        # float32 for any compute dtype: one vector per clip costs nothing.
        self.fc_norm = LayerNorm(jnp.float32, name="fc_norm")
        self.head = nn.Dense(self.classes, kernel_init=init_head, name="head")

    def __call__(
        self, patches: jax.Array, grid: Triple, keys: jax.Array | None = None
    ) -> jax.Array:
        """Return logits, float32 [B, classes], of patches [B, N, P].

        patches: uint8, or float32 in [0, 255] after augmentation. grid: (T, rows, columns).
        keys: typed PRNG keys [B], one per clip, for drop path and dropout; None for neither.
        """
        if keys is None:
            return self.head(self.features(patches, grid))
        path_keys, head_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        features = self.features(patches, grid, path_keys)
        return self.head(dropout(features, self.head_dropout, head_keys))

    def features(
        self, patches: jax.Array, grid: Triple, keys: jax.Array | None = None
    ) -> jax.Array:
        """Return the input of the head, float32 [B, D]: the mean token after a LayerNorm."""
        tokens = self.tokens(patches, grid, keys)
        return self.fc_norm(tokens.astype(jnp.float32).mean(axis=1))

    def tokens(self, patches: jax.Array, grid: Triple, keys: jax.Array | None = None) -> jax.Array:
        """Return the output of the last block, [B, N, D] in the compute dtype, before any norm."""
        return self.video_encoder(patches, grid, keys=keys)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Set each value of [B, D] to zero with probability `rate`, and scale up the others.

    keys: typed PRNG keys [B], one per clip.
    """
    if not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return x * kept / (1 - rate)


def init_classifier(model: VideoClassifier, key: jax.Array, grid: Triple) -> dict:
    """Return random float32 parameters, to train without pre-training: see `draw_blocks`."""
    return draw_blocks(model.init(key, model.blank_patches(grid), grid)["params"], key)


def draw_blocks(params: dict, key: jax.Array) -> dict:
    """Return the parameters of a model with other matrices in the blocks of its encoder.

    They are normal with deviation 0.02; in pre-training they are Xavier-uniform.
    """
    blocks = params["encoder"]["blocks"]
    leaves = jax.tree_util.tree_leaves_with_path(blocks)

    def draw(index, path, leaf):
        if path[-1].key not in ("kernel", "qkv"):
            return leaf
        return linear(jax.random.fold_in(key, index), leaf.shape)

    drawn = [draw(index, path, leaf) for index, (path, leaf) in enumerate(leaves)]
    blocks = jax.tree.unflatten(jax.tree.structure(blocks), drawn)
    encoder = {**params["encoder"], "blocks": blocks}
    return {**params, "encoder": encoder}
