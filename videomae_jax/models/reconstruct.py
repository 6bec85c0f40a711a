"""Reconstruct the masked patches of videos with a pre-trained model.

A model trained on targets normalized per patch does not predict colours: each predicted patch
needs a mean and a standard deviation to become pixels. Taken from the masked patch itself, they
show its true colour and contrast, whatever the model learned. Estimated from the visible patches,
they leak nothing.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.models.mae import VideoMAE, predicted_patches, reconstruction_sums
from videomae_jax.models.masking import Mask, gather_tubes, scatter_tubes
from videomae_jax.models.tokens import (
    Triple,
    patch_statistics,
    patchify,
    pixels_from_targets,
    unpatchify,
    video_grid,
)

STATISTICS = ("visible", "truth")
GREY = 128


class Reconstruction(NamedTuple):
    """Videos of the same clips, [B, F, H, W, C], and the loss of the prediction.

    masked: uint8, masked patches are grey. predicted: uint8, visible patches of the clip and
    masked patches of the model. error: float32 in [0, 1], the absolute difference between
    `predicted` and the clip, zero where visible. sums: per clip, see `mae.reconstruction_sums`.
    """

    masked: jax.Array
    predicted: jax.Array
    error: jax.Array
    sums: dict[str, jax.Array]


def reconstruct(
    model: VideoMAE,
    params: Any,
    video: jax.Array,
    mask: Mask,
    *,
    normalized: bool,
    statistics: str,
) -> Reconstruction:
    """Predict every masked patch of uint8 [B, F, H, W, C] and insert it into the video.

    normalized: the model was trained on targets normalized per patch. statistics: the source of
    the mean and std of a masked patch, "visible" (`estimate_statistics`; no pixel of
    `predicted` depends on a masked pixel) or "truth" (the masked patch itself: leaks its colour
    and contrast). Without normalization it has no effect.
    Raises UserError for other `statistics`, or a side that is not a whole number of patches.
    """
    if statistics not in STATISTICS:
        raise UserError(
            f"patch statistics {statistics!r} are unknown: use {' or '.join(STATISTICS)}"
        )
    channels = video.shape[-1]
    grid = video_grid(video, model.patch)
    patches = patchify(video, model.patch)
    visible = gather_tubes(patches, mask.visible, mask)
    prediction = cast(jax.Array, model.apply({"params": params}, patches, mask, grid))

    pixels = prediction
    if normalized and statistics == "truth":
        truth = patch_statistics(predicted_patches(patches, mask), channels)
        pixels = pixels_from_targets(prediction, *truth)
    elif normalized:
        estimate = estimate_statistics(visible, mask, grid=grid, channels=channels)
        pixels = pixels_from_targets(prediction, *estimate)
    pixels = jnp.round(255 * jnp.clip(pixels, 0, 1)).astype(jnp.uint8)

    def complete(hidden: jax.Array) -> jax.Array:
        return unpatchify(scatter_tubes(visible, hidden, mask), grid, model.patch)

    predicted = complete(pixels)
    return Reconstruction(
        masked=complete(jnp.full_like(pixels, GREY)),
        predicted=predicted,
        error=jnp.abs(predicted.astype(jnp.float32) - video.astype(jnp.float32)) / 255,
        sums=reconstruction_sums(
            prediction, patches, mask, channels=channels, normalized=normalized
        ),
    )


def estimate_statistics(
    visible: jax.Array, mask: Mask, *, grid: Triple, channels: int
) -> tuple[jax.Array, jax.Array]:
    """Estimate the mean and std of the masked patches from the visible ones, uint8 [B, N - n, P].

    Each is an average over the visible patches, weighted by 1 / distance^6 in units of patches
    and time steps. Returns float32 [B, n, C] twice, as `patch_statistics`, in [0, 1].
    """
    known = jnp.concatenate(patch_statistics(visible, channels), axis=-1)  # [B, N - n, 2 C]
    points = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid), indexing="ij"), axis=-1)
    points = jnp.broadcast_to(points.reshape(-1, 3), (visible.shape[0], np.prod(grid), 3))
    to = gather_tubes(points, mask.masked, mask)[:, :, None]
    origin = gather_tubes(points, mask.visible, mask)[:, None]
    # No distance is zero, because no patch is both masked and visible. The number of patches
    # grows with the square of the distance, so with a lower power the distant patches dominate.
    # Measured on mocap_studio: power 6 was better than 2 to 4 for every kind of mask, and using
    # all time steps was better than using the same one only, or equal for tubes.
    weight = jnp.square(to - origin).sum(-1).astype(jnp.float32) ** -3
    weight /= weight.sum(-1, keepdims=True)
    estimate = jnp.matmul(weight, known, precision=jax.lax.Precision.HIGHEST)
    return estimate[..., :channels], estimate[..., channels:]


def statistics_label(statistics: str, *, normalized: bool) -> str:
    """Return a caption that says where the mean and std of the masked patches come from."""
    if not normalized:
        return "the model predicts plain pixels: no patch statistics needed"
    return {
        "visible": "patch statistics from visible patches only",
        "truth": "patch statistics from the hidden patches themselves (leaks)",
    }[statistics]


def slide(count: int, *, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Cover a video of `count` frames with consecutive clips of F = `frames`.

    Returns frame indices, int64 [clips, F], and bool [clips, F], True where an index is to be
    shown: this shows each frame once, in order. The last clip ends with the last frame, so it
    overlaps the clip before it. A video shorter than one clip repeats its last frame.
    """
    starts = np.arange(0, count, frames)
    shifted = np.minimum(starts, max(0, count - frames))
    frame = shifted[:, None] + np.arange(frames)
    indices = np.minimum(frame, count - 1)
    # The last clip is moved back; frames before its original start are in the clip before it.
    return indices, (frame >= starts[:, None]) & (frame < count)
