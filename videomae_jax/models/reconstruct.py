"""What a pre-trained model makes of the hidden patches, as pictures.

A model trained on targets normalized per patch predicts no colours: each predicted patch
needs a mean and a standard deviation to become pixels. To take them from the hidden patch
itself shows its true colour and contrast, whatever was learned; "visible" does not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.models.mae import VideoMAE, predicted_patches, reconstruction_sums
from videomae_jax.models.masking import Mask, gather_tubes, scatter_tubes
from videomae_jax.models.tokens import (
    Triple,
    patch_grid,
    patch_statistics,
    patchify,
    pixels_from_targets,
    unpatchify,
)

STATISTICS = ("visible", "truth")
GREY = 128


class Reconstruction(NamedTuple):
    """Videos of the same clips, [B, F, H, W, C], and how good the prediction is.

    masked: uint8, hidden patches grey. predicted: uint8, visible patches from the clip, hidden
    ones from the model. error: float32 in [0, 1], the absolute difference of `predicted` to
    the clip, zero where visible. sums: of the loss, per clip, see `mae.reconstruction_sums`.
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
    """Predict every hidden patch of uint8 [B, F, H, W, C] and put it in its place.

    normalized: the model was trained on targets normalized per patch. statistics: where the
    mean and std of a hidden patch then come from, "visible" (`estimate_statistics`; no pixel
    of `predicted` depends on a hidden one) or "truth" (the hidden patch: leaks its colour and
    contrast); the same thing for a model of plain pixels.
    Raises UserError for another word, or a size that is not a whole number of patches.
    """
    if statistics not in STATISTICS:
        raise UserError(
            f"patch statistics {statistics!r} are unknown: use {' or '.join(STATISTICS)}"
        )
    channels = video.shape[-1]
    grid = patch_grid(tuple(video.shape[1:4]), model.patch)
    patches = patchify(video, model.patch)
    prediction = model.apply({"params": params}, patches, mask, grid)

    pixels = prediction
    if normalized and statistics == "truth":
        truth = patch_statistics(predicted_patches(patches, mask), channels)
        pixels = pixels_from_targets(prediction, *truth)
    elif normalized:
        visible = gather_tubes(patches, mask.visible, mask)
        estimate = estimate_statistics(visible, mask, grid=grid, channels=channels)
        pixels = pixels_from_targets(prediction, *estimate)
    pixels = jnp.round(255 * jnp.clip(pixels, 0, 1)).astype(jnp.uint8)

    def complete(hidden: jax.Array) -> jax.Array:
        visible = gather_tubes(patches, mask.visible, mask)
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
    """Guess the mean and std of the masked patches from uint8 visible ones [B, N - n, P] alone.

    Each is the mean of those of the visible patches weighted by 1 / distance^6, in patches and
    time steps. Returns float32 [B, n, C] twice, as `patch_statistics`, in [0, 1].
    """
    known = jnp.concatenate(patch_statistics(visible, channels), axis=-1)  # [B, N - n, 2 C]
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid), indexing="ij"), axis=-1)
    places = jnp.broadcast_to(places.reshape(-1, 3), (visible.shape[0], np.prod(grid), 3))
    here = gather_tubes(places, mask.masked, mask)[:, :, None]
    there = gather_tubes(places, mask.visible, mask)[:, None]
    # No distance is zero: no patch is both. The number of patches grows with the square of
    # their distance, so with a lower power the far ones outvote the near. Measured on
    # mocap_studio: the sixth beat the second to fourth under every kind of mask, and looking
    # at other time steps beat looking at the same one, or tied for tubes.
    weight = jnp.square(here - there).sum(-1).astype(jnp.float32) ** -3
    weight /= weight.sum(-1, keepdims=True)
    guess = jnp.matmul(weight, known, precision=jax.lax.Precision.HIGHEST)
    return guess[..., :channels], guess[..., channels:]


def statistics_label(statistics: str, *, normalized: bool) -> str:
    """Say where the colour and contrast of hidden patches come from, for under a picture."""
    if not normalized:
        return "the model predicts plain pixels: no patch statistics needed"
    return {
        "visible": "patch statistics from visible patches only",
        "truth": "patch statistics from the hidden patches themselves (leaks)",
    }[statistics]


def slide(count: int, *, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Cover `count` frames by consecutive clips: int64 and bool [clips, F].

    The first are frame indices. The second says where to show them, so that each frame is
    shown once, in order: the last clip begins early enough to end with the last frame, and
    a video shorter than one clip repeats its last frame.
    """
    starts = np.arange(0, count, frames)
    shifted = np.minimum(starts, max(0, count - frames))
    indices = np.minimum(shifted[:, None] + np.arange(frames), count - 1)
    # In the last clip, frames before its planned start were shown by the clip before.
    fresh = shifted[:, None] + np.arange(frames)
    return indices, (fresh >= starts[:, None]) & (fresh < count)
