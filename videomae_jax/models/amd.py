"""AMD (2311.03149): a small model learns the features of a frozen one that sees more of a clip.

Both have features at two depths, after half of their blocks and after all. From its own, the
student predicts those of the teacher twice: of the patches that both see, by a linear layer, and of
the patches that only the teacher sees, by two more blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from videomae_jax.models.encoder import VideoModel, broadcast_to_clips
from videomae_jax.models.mae import VideoMAE, init_mask_token
from videomae_jax.models.masking import Mask, gather_tubes, mask_within
from videomae_jax.models.tokens import Triple, positions
from videomae_jax.models.vit import Dense, Execution, Size, apply_blocks, xavier

DEPTHS = ("half", "full")


def halves(depth: int) -> tuple[int, int]:
    """Return the blocks up to the first of the two depths, and those from there to the second."""
    return depth // 2, depth - depth // 2


class Features(NamedTuple):
    """Features of a teacher at one depth, or their prediction, in the compute dtype.

    common: [B, T * K, D] of the patches that the student sees. unseen: [B, T * n, D] of the n
    patches of a time step that only the teacher sees.
    """

    common: jax.Array
    unseen: jax.Array


def split_features(tokens: jax.Array, mask: Mask, wider: Mask) -> Features:
    """Split tokens [B, T * K, D] of the patches that `wider` leaves visible.

    mask: of the student, nested in `wider`.
    """
    within = mask_within(mask, wider)
    return Features(*(gather_tubes(tokens, ids, within) for ids in within))


class FeatureHead(nn.Module):
    """Predict the features of a teacher at one depth from those of the student.

    size: of the blocks that predict what the student does not see; the width is the teacher's.
    """

    size: Size
    run: Execution

    @nn.compact
    def __call__(self, tokens: jax.Array, places: Features) -> Features:
        """Predict from tokens [B, T * K, D]; places: the position embeddings of the features."""
        width = self.size.width
        common = Dense(width, self.run.dtype, xavier, None, name="projection")(tokens)
        # A parameter. That of the reference is none: it sits in a plain list and never trains.
        mask_token = self.param("mask_token", init_mask_token, (width,))
        seen, hidden = common + places.common, mask_token + places.unseen
        both = jnp.concatenate([seen, hidden], axis=1).astype(common.dtype)
        return Features(common, apply_blocks(both, self.size, self.run, last=hidden.shape[1]))


class FeatureHeads(nn.Module):
    """The `FeatureHead` of each depth. position_grid, positions: see `encoder.VideoModel`."""

    size: Size
    run: Execution
    position_grid: Triple | None = None
    positions: str = "1d"

    @nn.compact
    def __call__(
        self, tokens: list[jax.Array], mask: Mask, wider: Mask, grid: Triple
    ) -> list[Features]:
        """Return the predictions from the student's tokens [B, T * K, D] at each depth.

        mask: of the student, nested in `wider`, that of the teacher. grid: (T, rows, columns).
        """
        table = positions(grid, self.size.width, kind=self.positions, source=self.position_grid)
        every = broadcast_to_clips(table, len(mask.visible))
        places = split_features(gather_tubes(every, wider.visible, wider), mask, wider)
        return [
            FeatureHead(self.size, self.run, name=name)(x, places)
            for name, x in zip(DEPTHS, tokens, strict=True)
        ]


def encode_and_decode(
    model: VideoMAE, patches: jax.Array, mask: Mask, grid: Triple, decoded: Mask | None
) -> tuple[jax.Array, list[jax.Array]]:
    """Return what a call of the model returns, and its tokens at each depth, [B, T * K, D].

    It is a method for `model.apply`.
    """
    encoder = model.video_encoder
    tokens = encoder.part_outputs(patches, grid, halves(model.encoder.depth), mask=mask)
    return model.decode(encoder.normalize(tokens[-1]), mask, grid, decoded), tokens


def teacher_features(
    teacher: VideoModel, params: Any, patches: jax.Array, mask: Mask, wider: Mask, grid: Triple
) -> list[Features]:
    """Return the features of a teacher at each depth.

    params: of its encoder. patches: uint8 [B, N, P]. mask, wider, grid: see `FeatureHeads`.
    """
    parts = halves(teacher.encoder.depth)
    encoder = teacher.build_encoder(final_norm=False)
    tokens: Any = encoder.apply(
        {"params": params}, patches, grid, parts, mask=wider, method="part_outputs"
    )
    return [split_features(x, mask, wider) for x in tokens]


def feature_errors(predicted: list[Features], wanted: list[Features]) -> dict[str, jax.Array]:
    """Return the squared errors of each clip, float32 [B]: means over tokens, channels and depths.

    "direct": of the patches that both see. "generated": of those that only the teacher sees.
    """

    def error(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.square(a.astype(dtype) - b.astype(dtype)).mean((1, 2))

    errors = [Features(*map(error, *pair)) for pair in zip(predicted, wanted, strict=True)]
    mean = jax.tree.map(lambda *depths: sum(depths) / len(depths), *errors)
    return {"direct": mean.common, "generated": mean.unseen}


def add_errors(pixels: dict[str, jax.Array], errors: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Add errors of features, means of each clip, to the sums of its pixels, all [B].

    The mean error of a clip counts once for each of its predicted patches, so that "count" divides
    everything.
    """
    more = {name: pixels["count"] * error for name, error in errors.items()}
    total = pixels["error"] + sum(more.values())
    return {**pixels, **more, "error": total, "pixels": pixels["error"]}
