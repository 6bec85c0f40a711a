"""The fine-tuning task: classify clips."""

import functools
from collections.abc import Callable
from typing import Any

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

# Named streams of randomness, folded into the step's key.
AUGMENT, MIX, DROP = range(3)

SAMPLING = ("dense", "sparse")


def build_model(config: ConfigDict) -> VideoClassifier:
    """Make the model of `config.model`, run as `config.run` says on this machine's devices."""
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
    """Put the classes of the training videos into the config, and number all labels by them.

    What the config has of its own, `model.classes` and `data.class_names`, stays. Raises
    UserError for missing labels, more classes than the model has, and held-out videos of a
    class that is not in training.
    """
    names = tuple(config.data.class_names) or train.class_names or ()
    train = number_labels(train, names)
    assert train.labels is not None  # or `number_labels` had raised
    classes = config.model.classes or len(names) or int(train.labels.max()) + 1
    if train.labels.max() >= classes:
        raise UserError(
            f"{train.name} has label {train.labels.max()}, model.classes is {classes}: use "
            f"--config.model.classes={train.labels.max() + 1} or more"
        )
    if held_out:
        held_out = number_labels(held_out, names)
        assert held_out.labels is not None
        unseen = ~np.isin(held_out.labels, train.labels)
        if unseen.any():
            label = int(held_out.labels[unseen][0])
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

    Its batches have "label" int32 [B], and in training "row" int32 [B], the index of each clip
    in the batch of all devices. Ids cannot be keys: with repeated augmentation a batch has
    each of them several times.
    """
    model, clip, change = build_model(config), config.clip, config.augment
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
            f"from {change.min_area:g} of the picture, flip {'on' if change.flip else 'off'}, "
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

    options: what `config.augment` does not decide for all tasks: operations, magnitude,
    deviation and erase.
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


def train_sampler(config: ConfigDict) -> Callable:
    """Return the sampler of training clips, as `config.clip` says.

    They come in the size they have in the video, up to that of the source.
    """
    high, wide = config.clip.source_height, config.clip.source_width
    return _sample(config, height=high, width=wide, train=True, canvas=(high, wide))


def eval_sampler(config: ConfigDict) -> Callable:
    """Return the sampler of evaluation clips, as `config.clip` says."""
    return _sample(config, height=config.clip.height, width=config.clip.width, train=False)


def _sample(config: ConfigDict, **options) -> Callable:
    # PyAV is only needed where videos are read.
    from videomae_jax.data.samplers import DenseSampler, SparseSampler

    clip = config.clip
    options |= dict(frames=clip.frames, channels=len(config.model.mean))
    if clip.sampling == "dense":
        return DenseSampler(stride=clip.stride, **options)
    return SparseSampler(**options)


def view_sampler(config: ConfigDict, *, segments: int, crops: int):
    """Return the sampler of all test views of a video, for the clips of a config."""
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
    """Return the mean over the views of softmax, float32 [B, classes], of [B, V, F, H, W, C]."""
    frames, height, width = video.shape[2:5]
    grid = patch_grid((frames, height, width), model.patch)
    patches = patchify(video.reshape(-1, *video.shape[2:]), model.patch)
    logits: Any = model.apply({"params": params}, patches, grid)
    probabilities = jax.nn.softmax(logits)
    return probabilities.reshape(*video.shape[:2], -1).mean(axis=1)


def check_classes(model: ConfigDict) -> None:
    """Raise UserError for less than two classes."""
    if model.classes < 2:
        raise UserError(
            f"model.classes is {model.classes}: give training data with labels of 2 or more "
            "classes, or --config.model.classes"
        )


def check_clip(clip: ConfigDict) -> None:
    """Raise UserError for a way of sampling or a size that training cannot use."""
    if clip.sampling not in SAMPLING:
        raise UserError(f"clip.sampling {clip.sampling!r} is unknown: use {' or '.join(SAMPLING)}")
    for side in ("height", "width"):
        source, target = clip[f"source_{side}"], clip[side]
        if source < target:
            raise UserError(
                f"clip.source_{side} {source} is less than clip.{side} {target}: use {target} or "
                "more"
            )


def check_group(change: ConfigDict, *, clips: int) -> None:
    """Raise UserError unless mixing groups divide the clips of one device in one part of a step.

    change: `config.augment`.
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
    """Return the terms of loss and accuracy, per clip, float32 [B] each.

    "error": the cross-entropy with soft targets [B, classes]; "top1", "top5": whether the
    label is among the first 1 and 5 logits, equal ones in the order of the classes; "count".
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
    # Not `logits > own`, which a NaN would pass as correct.
    rank = (~(logits <= own) | ((logits == own) & earlier)).sum(-1)
    return {
        "error": -(targets * jax.nn.log_softmax(logits)).sum(-1),
        "top1": (rank < 1).astype(jnp.float32),
        "top5": (rank < 5).astype(jnp.float32),
        "count": jnp.ones(len(logits)),
    }


def summarize(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Divide scalar sums into the loss and the fractions of clips classified correctly.

    In training the clips are mixed and the label is that of the first of two, so top1 and top5
    are far below what they are in evaluation.
    """
    count = sums["count"]
    return {
        "loss": sums["error"] / count,
        "top1": sums["top1"] / count,
        "top5": sums["top5"] / count,
    }
