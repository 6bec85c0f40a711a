"""The pre-training task: reconstruct masked patches."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from videomae_jax.augment.resize import resize_clip
from videomae_jax.data.videos import Videos, number_labels, to_one_label
from videomae_jax.errors import UserError
from videomae_jax.metrics import check_neighbours
from videomae_jax.models import flops
from videomae_jax.models.mae import VideoMAE, reconstruction_sums
from videomae_jax.models.masking import Mask, draw_mask, mask_counts
from videomae_jax.models.reconstruct import reconstruct
from videomae_jax.models.tokens import Triple, patchify
from videomae_jax.models.vit import Size
from videomae_jax.tasks.build import (
    Geometry,
    clip_geometry,
    compute_line,
    encoder_fields,
    flops_line,
    patches_text,
    platform_in_use,
    positions_line,
    row_keys,
)
from videomae_jax.tasks.task import Batch, Params, Task

if TYPE_CHECKING:  # it imports PyAV, which is only needed where videos are read
    from videomae_jax.data.samplers import ClipSampler

PICTURES = 4  # clips shown at each evaluation

# Random streams, folded into the key of the step.
MASK, DECODER_MASK = range(2)

# The banner's words for `model.decoder_attention`.
DECODERS = {
    "self": "self-attention over visible and predicted tokens",
    "cross": "cross-attention from predicted to visible tokens (CrossMAE, not the paper's)",
}

EVAL_SEED = 2022  # fixed, so that all runs mask the held-out clips alike and losses compare


def build_model(config: ConfigDict) -> VideoMAE:
    """Return the model of `config.model`, executed as `config.run` specifies."""
    kind = config.model.decoder_attention
    if kind not in DECODERS:
        raise UserError(f"model.decoder_attention {kind!r} is unknown: use {' or '.join(DECODERS)}")
    return VideoMAE(
        decoder=Size(**config.model.decoder), decoder_attention=kind, **encoder_fields(config)
    )


def prepare(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Number the labels of both lists alike if `config.knn` uses them; else change nothing.

    Raises UserError if it does and labels are missing or there are fewer than k videos, and for a
    teacher, which only `amd` has.
    """
    if config.task == "pretrain" and config.teacher:
        raise UserError(
            "config.teacher is set, but this recipe learns from pixels alone: use "
            "--config=pretrain:SIZE,DATA,amd"
        )
    if not config.knn.k:
        return config, train, held_out
    if not held_out:
        raise UserError(
            "knn.k is set, but no videos are held out to classify: give --config.data.eval or "
            "--config.data.holdout"
        )
    for videos in (train, held_out):
        if videos.labels is None:
            raise UserError(
                f"knn.k is {config.knn.k}, but {videos.name} has no labels: give `path label` "
                "lines or a folder with a sub-folder per class, or --config.knn.k=0 for no knn"
            )
    check_neighbours((config.knn.k,), bank=min(config.knn.videos, len(train)))
    names = train.class_names or ()
    reason = "knn.k compares single labels, use --config.knn.k=0 and train a probe"
    train, held_out = (
        to_one_label(number_labels(videos, names), reason=reason) for videos in (train, held_out)
    )
    return config, train, held_out


def build_task(config: ConfigDict) -> Task:
    """Return the pre-training task of a locked config."""
    model = build_model(config)
    clip = config.clip
    geometry = clip_geometry(clip, model)
    draw = make_draw(config.mask, geometry.grid)
    visible, decoded = _token_counts(config.mask, geometry)
    forward_flops, train_flops = flops.pretrain_flops(
        model.encoder,
        model.decoder,
        visible=visible,
        decoded=decoded,
        values=geometry.values,
        cross=model.decoder_attention == "cross",
    )

    @jax.jit
    def init(key):
        patches = model.blank_patches(geometry.grid)
        mask, decoded = draw(jax.random.key(0), jnp.zeros([1], jnp.int32))
        return model.init(key, patches, mask, geometry.grid, decoded)["params"]

    def clip_sums(params, video, key, ids):
        patches = patchify(video, model.patch)
        mask, decoded = draw(key, ids)
        prediction: Any = model.apply({"params": params}, patches, mask, geometry.grid, decoded)
        return reconstruction_sums(
            prediction,
            patches,
            mask,
            decoded=decoded,
            channels=len(model.mean),
            normalized=config.normalized_targets,
        )

    def train_sums(params, batch, key):
        video, ids = training_clips(config, batch)
        return jax.tree.map(jnp.sum, clip_sums(params, video, key, ids))

    def eval_sums(params, batch):
        return clip_sums(params, batch["video"], jax.random.key(EVAL_SEED), batch["id"])

    return Task(
        init=init,
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=summarize,
        pictures=_make_pictures(model, draw, normalized=config.normalized_targets),
        samplers=lambda: (train_sampler(config), eval_sampler(config)),
        check_clips=lambda clips: None,
        train_flops=train_flops,
        knn=config.knn if config.knn.k else None,
        summary={
            "clip": f"{clip.frames} frames, stride {clip.stride}, {clip.height} x {clip.width}, "
            f"{patches_text(geometry, model)}",
            "positions": positions_line(geometry.grid, model),
            "mask": f"{config.mask.kind}, ratio {config.mask.ratio}: "
            f"{visible} tokens visible, {decoded} predicted",
            "decoder": f"{model.decoder.depth} blocks, {DECODERS[model.decoder_attention]}",
            "loss": _loss_line(model, normalized=config.normalized_targets),
            "compute": compute_line(model.run),
            "FLOPs": flops_line(forward_flops, train_flops),
        },
    )


def training_clips(config: ConfigDict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return the clips of a training batch in their size, and a number for the mask of each."""
    video, ids, clip = batch["video"], batch["id"], config.clip
    if "size" in batch:
        resize = functools.partial(resize_clip, height=clip.height, width=clip.width)
        video = jax.vmap(resize)(video, batch["size"])
    if config.repeats > 1:  # clips of one video are adjacent, and each has its own mask
        ids = ids * config.repeats + batch["row"] % config.repeats
    return video, ids


Draw = Callable[[jax.Array, jax.Array], tuple[Mask, Mask | None]]


def make_draw(mask: ConfigDict, grid: Triple) -> Draw:
    """Return a function (key, ids int32 [B]) -> (mask, mask of the tokens to decode).

    mask: `config.mask`. The second is None if all masked tokens are decoded. Masks depend only
    on the key and the global id of a clip, not on its process or row.
    """

    def draw(key, ids):
        keys = row_keys(key, ids, stream=MASK)
        encoder_mask = draw_mask(keys, mask.kind, grid=grid, ratio=mask.ratio)
        if not mask.decoder_ratio > 0:
            return encoder_mask, None
        keys = row_keys(key, ids, stream=DECODER_MASK)
        return encoder_mask, draw_mask(keys, "running_cell", grid=grid, ratio=mask.decoder_ratio)

    return draw


def visible_tokens(kind: str, geometry: Geometry, *, ratio: float) -> int:
    """Return how many tokens of a clip a mask leaves visible; see `masking.mask_counts`."""
    visible, masked = mask_counts(kind, geometry.grid, ratio=ratio)
    return geometry.tokens * visible // (visible + masked)


def _token_counts(mask: ConfigDict, geometry: Geometry) -> tuple[int, int]:
    """Return how many tokens of a clip are encoded and how many are predicted."""
    visible = visible_tokens(mask.kind, geometry, ratio=mask.ratio)
    if mask.decoder_ratio > 0:
        return visible, visible_tokens("running_cell", geometry, ratio=mask.decoder_ratio)
    return visible, geometry.tokens - visible


def _make_pictures(
    model: VideoMAE, draw: Draw, *, normalized: bool
) -> Callable[[Params, Batch], dict[str, np.ndarray]]:
    """Return a function that draws the reconstructions of the first clips of a batch."""

    # Replicated, so that every process has the clips, whichever process read them.
    @functools.partial(jax.jit, out_shardings=P())
    def rebuild(params, batch):
        video, ids = batch["video"][:PICTURES], batch["id"][:PICTURES]
        mask, _ = draw(jax.random.key(EVAL_SEED), ids)
        return video, reconstruct(
            model, params, video, mask, normalized=normalized, statistics="visible"
        )

    def pictures(params, batch):
        from videomae_jax.pictures import summary_image

        video, rebuilt = rebuild(params, {key: batch[key] for key in ("video", "id")})
        return {"reconstruction": summary_image(np.asarray(video), rebuilt)}

    return pictures


def _loss_line(model: VideoMAE, *, normalized: bool) -> str:
    if not normalized:
        return "mean squared error of pixels"
    pixels = math.prod(model.patch)
    return (
        "mean squared error of pixels normalized per patch "
        f"(a model that predicts zero: {pixels - 1}/{pixels})"
    )


def train_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of training clips of `config.clip`.

    On accelerators clips keep their size in the video, up to source_height x source_width.
    """
    clip = config.clip
    # On CPUs the host is the device, and resizes in a small part of its time (docs/data.md).
    if platform_in_use() == "cpu":
        return _sampler(config, train=True)
    canvas = max(clip.source_height, clip.height), max(clip.source_width, clip.width)
    return _sampler(config, train=True, canvas=canvas)


def eval_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of evaluation clips of `config.clip`."""
    return _sampler(config, train=False)


def _sampler(config: ConfigDict, **options: Any) -> "ClipSampler":
    from videomae_jax.data.samplers import PretrainSampler

    clip = config.clip
    return PretrainSampler(
        frames=clip.frames,
        stride=clip.stride,
        height=clip.height,
        width=clip.width,
        channels=len(config.model.mean),
        **options,
    )


def summarize(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the mean loss, vs_zero and r2.

    vs_zero: the loss divided by the loss of predicting zero. r2: 1 - loss / variance of the
    targets; for normalized targets, whose mean is zero, that is 1 - vs_zero.
    """
    count = sums["count"]
    loss = sums["error"] / count
    square = sums["square"] / count
    mean = sums["target"] / count
    return {"loss": loss, "vs_zero": loss / square, "r2": 1 - loss / (square - mean**2)}
