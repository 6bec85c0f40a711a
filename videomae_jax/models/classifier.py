"""A fine-tuned encoder: every patch of a clip, mean over the tokens, a linear head.

The parameters under "encoder" are those of `mae.VideoMAE`, without its final norm.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.mae import Encoder
from videomae_jax.models.tokens import Triple, normalize_pixels, positions
from videomae_jax.models.vit import Execution, LayerNorm, Size

# The reference cuts its normal distribution at +-2, a hundred sigmas: it never does.
linear = nn.initializers.normal(0.02)

HEAD_SCALE = 0.001  # the head begins almost at zero: all classes alike, small gradients below


class VideoClassifier(nn.Module):
    """The fine-tuning model. Without keys nothing in it is random.

    encoder: the transformer; patch, mean, std, position_grid: as in `mae.VideoMAE`.
    drop_path: rate of the last block, see `vit.apply_blocks`. head_dropout: the chance that
    a feature is dropped before the head.
    """

    encoder: Size
    patch: Triple
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    position_grid: Triple | None = None
    run: Execution = Execution()
    drop_path: float = 0.0
    head_dropout: float = 0.0

    def setup(self):
        self.video_encoder = Encoder(
            self.encoder, self.run, final_norm=False, drop_path=self.drop_path, name="encoder"
        )
        # In float32 whatever the compute dtype: one vector per clip costs nothing.
        self.fc_norm = LayerNorm(jnp.float32, name="fc_norm")
        self.head = nn.Dense(
            self.classes, kernel_init=nn.initializers.normal(0.02 * HEAD_SCALE), name="head"
        )

    def __call__(
        self, patches: jax.Array, grid: Triple, keys: jax.Array | None = None
    ) -> jax.Array:
        """Return logits, float32 [B, classes], of patches [B, N, P].

        patches: uint8, or float32 on the same scale of 0 to 255 after augmentation.
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
        """Return what the head sees, float32 [B, D]: the mean token, normed."""
        tokens = self.tokens(patches, grid, keys)
        return self.fc_norm(tokens.astype(jnp.float32).mean(axis=1))

    def tokens(self, patches: jax.Array, grid: Triple, keys: jax.Array | None = None) -> jax.Array:
        """Return the last block's output [B, N, D], in the compute dtype, not normed."""
        places = positions(grid, self.encoder.width, source=self.position_grid)
        pixels = normalize_pixels(patches, self.mean, self.std)
        return self.video_encoder(pixels, places[None], keys)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Zero each value of [B, D] with the chance `rate`, and scale up the others."""
    if not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return x * kept / (1 - rate)


def init_classifier(model: VideoClassifier, key: jax.Array, grid: Triple) -> dict:
    """Return parameters to fine-tune from scratch.

    As pre-training begins, but for the matrices of the blocks: those are normal 0.02 in
    fine-tuning, Xavier-uniform in pre-training.
    """
    values = math.prod(model.patch) * len(model.mean)
    patches = jnp.zeros([1, math.prod(grid), values], jnp.uint8)
    params = model.init(key, patches, grid)["params"]
    leaves, structure = jax.tree_util.tree_flatten_with_path(params["encoder"]["blocks"])

    def draw(index, path, leaf):
        if path[-1].key not in ("kernel", "qkv"):
            return leaf
        return linear(jax.random.fold_in(key, index), leaf.shape)

    blocks = [draw(index, path, leaf) for index, (path, leaf) in enumerate(leaves)]
    encoder = {**params["encoder"], "blocks": structure.unflatten(blocks)}
    return {**params, "encoder": encoder}
