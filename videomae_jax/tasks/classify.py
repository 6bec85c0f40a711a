"""The fine-tuning task: classify clips."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.augment.clip import augment, mix_clips, smooth_targets
from videomae_jax.data.videos import Videos, number_labels
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.tokens import patch_grid, patchify
from videomae_jax.tasks.build import (
    clip_geometry,
    compute_line,
    encoder_fields,
    flops_line,
    patches_text,
    positions_line,
)
from videomae_jax.tasks.task import Params, Task

if TYPE_CHECKING:  # it imports PyAV, which is only needed where videos are read
    from videomae_jax.data.samplers import ClipSampler, ViewSampler

# Random streams, folded into the key of the step.
AUGMENT, MIX, DROP = range(3)

SAMPLING = ("dense", "sparse")


def build_model(config: ConfigDict) -> VideoClassifier:
    """Return the classifier of `config.model`, executed as `config.run` specifies."""
    model = config.model
    check_classes(model)
    return VideoClassifier(
        classes=model.classes,
        drop_path=config.drop_path,
        head_dropout=config.head_dropout,
        **encoder_fields(config),
    )


def prepare(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Write the classes of the training videos into the config, and number all labels by them.

    Values that the config already has, `model.classes` and `data.class_names`, stay. Raises
    UserError for missing labels, for more classes than the model has, and for held-out videos
    of a class that training does not have.
    """
    names = tuple(config.data.class_names) or train.class_names or ()
    train = number_labels(train, names)
    labels = np.asarray(train.labels)
    classes = config.model.classes or len(names) or int(labels.max()) + 1
    if labels.max() >= classes:
        raise UserError(
            f"{train.name} has label {labels.max()}, model.classes is {classes}: use "
            f"--config.model.classes={labels.max() + 1} or more"
        )
    if held_out:
        held_out = number_labels(held_out, names)
        held_out_labels = np.asarray(held_out.labels)
        unseen = ~np.isin(held_out_labels, labels)
        if unseen.any():
            label = int(held_out_labels[unseen][0])
            raise UserError(
                f"{unseen.sum()} of {len(held_out)} held-out videos of {held_out.name} are of "
                f"classes that training never sees, first {names[label] if names else label}: "
                "leave them out, or train on some"
            )
    config = config.copy_and_resolve_references()
    config.model.classes, config.data.class_names = classes, names
    return config.lock(), train, held_out


def build_task(config: ConfigDict) -> Task:
    """Return the fine-tuning task of a locked config.

    Batches have "label" int32 [B], and in training "row" int32 [B], the index of each clip in
    the global batch. Augmentations are keyed by row, not by id: with repeated augmentation a
    batch contains each id several times.
    """
    model = build_model(config)
    clip = config.clip
    change = config.augment
    check_clip(clip)
    geometry = clip_geometry(clip, model)
    grid = geometry.grid
    forward_flops, train_flops = flops.finetune_flops(
        model.encoder, tokens=geometry.tokens, values=geometry.values, classes=model.classes
    )
    augment_clip = make_augment(
        config,
        operations=change.operations,
        magnitude=change.magnitude,
        deviation=change.deviation,
        erase=change.erase,
    )

    def init(key):
        return init_classifier(model, key, grid)

    def train_sums(params, batch, key):
        def row_keys(stream):
            stream_key = jax.random.fold_in(key, stream)
            return jax.vmap(lambda row: jax.random.fold_in(stream_key, row))(batch["row"])

        video, targets = mix_clips(
            jax.random.fold_in(key, MIX),
            jax.vmap(augment_clip)(row_keys(AUGMENT), batch["video"], batch.get("size")),
            smooth_targets(batch["label"], classes=model.classes, smoothing=config.label_smoothing),
            batch["row"],
            group=change.group,
            mixup=change.mixup,
            cutmix=change.cutmix,
            switch=change.switch,
        )
        patches = patchify(video, model.patch)
        logits: Any = model.apply({"params": params}, patches, grid, row_keys(DROP))
        return jax.tree.map(jnp.sum, class_sums(logits, targets, batch["label"]))

    def eval_sums(params, batch):
        patches = patchify(batch["video"], model.patch)
        logits: Any = model.apply({"params": params}, patches, grid)
        targets = smooth_targets(batch["label"], classes=model.classes, smoothing=0.0)
        return class_sums(logits, targets, batch["label"])

    frames = f"stride {clip.stride}" if clip.sampling == "dense" else "one of each part"
    return Task(
        init=init,
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=summarize,
        pictures=lambda params, batch: {},
        samplers=lambda: (train_sampler(config), eval_sampler(config)),
        check_clips=lambda clips: check_group(change, clips=clips),
        train_flops=train_flops,
        summary={
            "clip": f"{clip.frames} frames, {frames}, {clip.height} x {clip.width}, "
            f"{patches_text(geometry, model)}; {model.classes} classes",
            "positions": positions_line(grid, model.position_grid),
            "augment": f"{change.operations} operations at magnitude {change.magnitude:g}, crops "
            f"from {change.min_area:g} of the image, flip {'on' if change.flip else 'off'}, "
            f"erase {change.erase:g}",
            "mix": f"mixup {change.mixup:g}, cutmix {change.cutmix:g}, in groups of "
            f"{change.group}; label smoothing {config.label_smoothing:g}",
            "drop": f"path {config.drop_path:g}, head {config.head_dropout:g}",
            "compute": compute_line(model.run),
            "FLOPs": flops_line(forward_flops, train_flops),
        },
    )


def make_augment(config: ConfigDict, **options: Any) -> Callable[..., jax.Array]:
    """Return `augment.clip.augment` for the clips of a config: (key, video, size) -> video.

    options: operations, magnitude, deviation and erase, which differ between the tasks.
    """
    clip, model, change = config.clip, config.model, config.augment
    return functools.partial(
        augment,
        height=clip.height,
        width=clip.width,
        mean=tuple(model.mean),
        std=tuple(model.std),
        min_area=change.min_area,
        flip=change.flip,
        **options,
    )


def train_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of training clips of `config.clip`.

    Clips keep their size in the video, up to source_height x source_width.
    """
    height, width = config.clip.source_height, config.clip.source_width
    return _sampler(config, height=height, width=width, train=True, canvas=(height, width))


def eval_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of evaluation clips of `config.clip`."""
    return _sampler(config, height=config.clip.height, width=config.clip.width, train=False)


def _sampler(config: ConfigDict, **options: Any) -> "ClipSampler":
    from videomae_jax.data.samplers import DenseSampler, SparseSampler

    clip = config.clip
    options |= dict(frames=clip.frames, channels=len(config.model.mean))
    if clip.sampling == "dense":
        return DenseSampler(stride=clip.stride, **options)
    return SparseSampler(**options)


def view_sampler(config: ConfigDict, *, segments: int, crops: int) -> "ViewSampler":
    """Return the sampler of all segments x crops test views of a video."""
    from videomae_jax.data.samplers import ViewSampler

    clip = config.clip
    return ViewSampler(
        frames=clip.frames,
        stride=clip.stride if clip.sampling == "dense" else None,
        height=clip.height,
        width=clip.width,
        channels=len(config.model.mean),
        segments=segments,
        crops=crops,
    )


def view_probabilities(model: VideoClassifier, params: Params, video: jax.Array) -> jax.Array:
    """Return the class probabilities averaged over the views of each video.

    video: uint8 [B, V, F, H, W, C]. Returns float32 [B, classes], 0 to 1.
    """
    frames, height, width = video.shape[2:5]
    grid = patch_grid((frames, height, width), model.patch)
    patches = patchify(video.reshape(-1, *video.shape[2:]), model.patch)
    logits: Any = model.apply({"params": params}, patches, grid)
    probabilities = jax.nn.softmax(logits)
    return probabilities.reshape(*video.shape[:2], -1).mean(axis=1)


def check_classes(model: ConfigDict) -> None:
    """Raise UserError for fewer than two classes."""
    if model.classes < 2:
        raise UserError(
            f"model.classes is {model.classes}: give training data with labels of 2 or more "
            "classes, or --config.model.classes"
        )


def check_clip(clip: ConfigDict) -> None:
    """Raise UserError for an unknown sampling or a source smaller than the clip."""
    if clip.sampling not in SAMPLING:
        raise UserError(f"clip.sampling {clip.sampling!r} is unknown: use {' or '.join(SAMPLING)}")
    check_source(clip)


def check_source(clip: ConfigDict) -> None:
    """Raise UserError for a source smaller than the clip."""
    for side in ("height", "width"):
        source, target = clip[f"source_{side}"], clip[side]
        if source < target:
            raise UserError(
                f"clip.source_{side} {source} is less than clip.{side} {target}: use {target} or "
                "more"
            )


def check_group(change: ConfigDict, *, clips: int) -> None:
    """Raise UserError unless the mixing group size divides `clips`.

    change: `config.augment`. clips: of one device in one accumulated part.
    """
    group = change.group
    if (change.mixup or change.cutmix) and clips % group:
        legal = [n for n in range(1, clips + 1) if clips % n == 0]
        near = min(legal, key=lambda n: (n == 1, abs(n - group)))  # 1 mixes nothing
        raise UserError(
            f"mixing groups of {group} do not divide the {clips} clips that a device takes at "
            f"once: use --config.augment.group={near}"
        )


def class_sums(logits: jax.Array, targets: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Return the terms of loss and accuracy of each clip, float32 [B].

    logits, targets: float32 [B, classes]. labels: int32 [B]. "error" is the cross-entropy with
    the soft targets; "top1" and "top5" are 1 if the label is among the 1 or 5 highest logits,
    where of equal logits the lower class is first; "count" is 1.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
    # Not `logits > own`: with NaN logits that would count as correct.
    rank = (~(logits <= own) | ((logits == own) & earlier)).sum(-1)
    return {
        "error": -(targets * jax.nn.log_softmax(logits)).sum(-1),
        "top1": (rank < 1).astype(jnp.float32),
        "top5": (rank < 5).astype(jnp.float32),
        "count": jnp.ones(len(logits)),
    }


def summarize(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the mean loss and the fractions of clips classified correctly.

    In training the label of two mixed clips is that of the first, so top1 and top5 are far below
    their values in evaluation.
    """
    count = sums["count"]
    return {
        "loss": sums["error"] / count,
        "top1": sums["top1"] / count,
        "top5": sums["top5"] / count,
    }
