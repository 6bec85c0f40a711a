"""A detector of actions: the encoder, the features inside each person's box, a linear head.

The parameters under "encoder" are those of `mae.VideoMAE`, with its final norm.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.classifier import draw_blocks, init_head
from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.roi_align import roi_align
from videomae_jax.models.tokens import Triple


class VideoDetector(VideoModel, kw_only=True):
    """The model of action detection. Nothing is random unless keys are given.

    roi_size, roi_ratio, roi_aligned: see `roi_align.roi_align`. drop_path: rate of the last
    block, see `vit.apply_parts`. The other fields are those of `encoder.VideoModel`. Positions
    for a grid other than `position_grid` are interpolated with a cubic kernel, as in the
    reference.
    """

    classes: int
    roi_size: int = 7
    roi_ratio: int = 0
    roi_aligned: bool = False
    drop_path: float = 0.0

    def setup(self):
        self.video_encoder = self.build_encoder(drop_path=self.drop_path, cubic_positions=True)
        self.head = nn.Dense(self.classes, kernel_init=init_head, name="head")

    def __call__(
        self, patches: jax.Array, grid: Triple, boxes: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Return the logits of each box, float32 [B, M, classes].

        patches: [B, N, P], uint8 or float32 in [0, 255]. grid: (T, rows, columns). boxes: float32
        [B, M, 4], x1, y1, x2, y2 in pixels of the clip and within it. keys: typed PRNG keys [B],
        one per clip, for drop path; None for no drop path.
        """
        return self.head(self.features(patches, grid, boxes, keys))

    def features(
        self, patches: jax.Array, grid: Triple, boxes: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Return the input of the head, float32 [B, M, D].

        The mean of the tokens over time, aligned to each box, and the largest value in each.
        """
        tokens = self.video_encoder(patches, grid, keys=keys)
        steps = tokens.reshape(tokens.shape[0], *grid, -1)
        _, height, width = self.patch
        aligned = roi_align(
            steps.astype(jnp.float32).mean(axis=1),
            boxes / jnp.asarray([width, height, width, height], jnp.float32),
            size=self.roi_size,
            ratio=self.roi_ratio,
            aligned=self.roi_aligned,
        )
        return aligned.max(axis=(2, 3))


def init_detector(model: VideoDetector, key: jax.Array, grid: Triple) -> dict:
    """Return random parameters, to train without pre-training; drawn as those of a classifier."""
    boxes = jnp.zeros([1, 1, 4])
    return draw_blocks(model.init(key, model.blank_patches(grid), grid, boxes)["params"], key)
