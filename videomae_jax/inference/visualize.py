"""Reconstruct the masked patches of a whole video with a pre-trained model."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.decode import UnreadableVideo, read_clip
from videomae_jax.data.resize import resize_crop
from videomae_jax.data.sampling import center_crop_box
from videomae_jax.errors import UserError
from videomae_jax.inference.network import Network
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.masking import draw_mask, mask_counts
from videomae_jax.models.reconstruct import Reconstruction, reconstruct, slide, statistics_label
from videomae_jax.models.tokens import patch_grid
from videomae_jax.tasks.task import Params


class Visualization(NamedTuple):
    """The result of `visualize`.

    frames: uint8 [n, H, W, C], every stride-th frame of the video. times: their frame numbers.
    total: the number of frames in the file. reconstructions: of all frames, by a title with the
    ratio and the loss. label: the source of the colours of masked patches, in words.
    """

    frames: np.ndarray
    times: range
    total: int
    reconstructions: dict[str, Reconstruction]
    label: str


def check_decoder(params: Params, source: str) -> None:
    """Raise UserError if a model has no decoder; `source` is its name in the message."""
    if "decoder" in params:
        return
    kind = "is a classifier" if "head" in params else "holds an encoder only"
    raise UserError(
        f"{source} {kind}: without a decoder it reconstructs nothing; "
        "give a pre-training run, or a released file with its decoder"
    )


def visualize(
    network: Network,
    params: Params,
    config: ConfigDict,
    video: str,
    *,
    source: str,
    ratios: Sequence[float] = (),
    kind: str | None = None,
    statistics: str = "visible",
    seed: int = 0,
    stride: int | None = None,
    max_frames: int = 64,
) -> Visualization:
    """Mask a video, clip by clip, and predict the masked patches, once for every ratio.

    source: the name of the model in messages. ratios: fractions of the patches to mask, empty:
    the ratio of training. kind: of the masks, None: as in training. statistics: see
    `reconstruct`. seed: of the masks. stride: take every stride-th frame, None: as in training.
    max_frames: take at most this many. Raises UserError if the model has no decoder or the file
    cannot be read, and for impossible settings.
    """
    check_decoder(params, source)
    model, clip = cast(VideoMAE, network), config.clip
    grid = patch_grid((clip.frames, clip.height, clip.width), model.patch)
    kind = kind or config.mask.kind
    counts = {
        ratio: mask_counts(kind, grid, ratio=ratio) for ratio in ratios or [config.mask.ratio]
    }
    stride = clip.stride if stride is None else stride
    frames, total = _read_frames(
        video,
        stride=stride,
        limit=max_frames,
        height=clip.height,
        width=clip.width,
        channels=len(model.mean),
    )
    indices, shown = slide(len(frames), frames=clip.frames)
    params = jax.device_put(params)
    normalized = config.normalized_targets
    predict = jax.jit(
        functools.partial(reconstruct, model, normalized=normalized, statistics=statistics)
    )
    reconstructions = {}
    for ratio, (visible, masked) in counts.items():
        parts = []
        for number, positions in enumerate(indices):
            # The same keys at every ratio: what a lower ratio masks, a higher one masks too.
            keys = jax.random.fold_in(jax.random.key(seed), number)[None]
            mask = draw_mask(keys, kind, grid=grid, ratio=ratio)
            parts.append(jax.device_get(predict(params, frames[positions][None], mask)))
        whole: Reconstruction = jax.tree.map(lambda *clips: np.concatenate(clips), *parts)
        count = whole.sums["count"].sum()
        loss, zero = (whole.sums[name].sum() / count for name in ("error", "square"))
        title = (
            f"{kind} mask, {masked / (visible + masked):.1%} hidden: "
            f"loss {loss:.3f}, predicting zero {zero:.3f}"
        )
        reconstructions[title] = Reconstruction(
            masked=whole.masked[shown],
            predicted=whole.predicted[shown],
            error=whole.error[shown],
            sums=whole.sums,
        )
    times = range(0, len(frames) * stride, stride)
    label = statistics_label(statistics, normalized=normalized)
    return Visualization(frames, times, total, reconstructions, label)


def _read_frames(
    path: str, *, stride: int, limit: int, height: int, width: int, channels: int
) -> tuple[np.ndarray, int]:
    """Read every stride-th frame, at most `limit`, cropped as in evaluation.

    Returns uint8 [n, H, W, C] and the number of frames in the file.
    """
    for name, value in (("stride", stride), ("max-frames", limit)):
        if value < 1:
            raise UserError(f"--{name} {value}: use 1 or more")
    total = 0

    def choose(count: int) -> np.ndarray:
        nonlocal total
        total = count
        return np.arange(0, count, stride)[:limit]

    try:
        frames = read_clip(path, choose, channels=channels)
    except UnreadableVideo as error:
        raise UserError(f"cannot read {path}: {error}") from None
    box = center_crop_box(
        frames.shape[2], frames.shape[1], target_width=width, target_height=height
    )
    return resize_crop(frames, box=box, width=width, height=height), total
