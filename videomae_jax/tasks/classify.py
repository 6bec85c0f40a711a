"""The fine-tuning task: classify clips."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from videomae_jax import metrics
from videomae_jax.augment.clip import augment, mix_clips, smooth_targets
from videomae_jax.data.videos import (
    Videos,
    list_labels,
    number_labels,
    required_labels,
    to_several_labels,
    used_labels,
)
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.tokens import patchify, video_grid
from videomae_jax.tasks.build import (
    Geometry,
    canvas_size,
    canvas_text,
    clip_geometry,
    clip_mapper,
    compute_line,
    encoder_fields,
    fit_canvas,
    flops_line,
    has_teacher,
    patches_text,
    positions_line,
    row_keys,
)
from videomae_jax.tasks.distillation import (
    adopt_classes,
    build_class_teacher,
    summarize_teacher,
    taught_sums,
)
from videomae_jax.tasks.task import Batch, Params, Task

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

    Values that the config already has, `model.classes` and `data.class_names`, stay. If a video
    of one of the lists has several labels, `model.multi_label` becomes True, and all labels
    bool [n, classes]. Raises UserError for missing labels, for more classes than the model has,
    and for held-out videos of a class that training does not have. With a teacher the classes are
    those that it knows: see `distillation.adopt_classes`.
    """
    if has_teacher(config):
        config, train, held_out = adopt_classes(config, train, held_out)
        return fit_canvas(config, train), train, held_out
    names = tuple(config.data.class_names) or train.class_names or ()
    if names:  # those of the model that training never sees are named by their numbers
        names += tuple(map(str, range(len(names), config.model.classes)))
    train = number_labels(train, names)
    known = set(used_labels(train).tolist())
    highest = max(known, default=-1)
    classes = config.model.classes or len(names) or highest + 1
    if highest >= classes:
        raise UserError(
            f"{train.name} has label {highest}, model.classes is {classes}: use "
            f"--config.model.classes={highest + 1} or more"
        )
    if len(names) > classes:
        raise UserError(
            f"there are {len(names)} class names, model.classes is {classes}: use "
            f"--config.model.classes={len(names)}"
        )
    if held_out:
        held_out = number_labels(held_out, names)
        unseen = [set(labels) - known for labels in list_labels(held_out)]
        if any(unseen):
            label = min(next(filter(None, unseen)))
            raise UserError(
                f"{sum(map(bool, unseen))} of {len(held_out)} held-out videos of {held_out.name} "
                "are of classes that training never sees, first "
                f"{names[label] if names else label}: leave them out, or train on some"
            )
    multi_label = config.model.multi_label or train.multi_label
    multi_label = multi_label or (held_out is not None and held_out.multi_label)
    if multi_label:
        train = _note_labels(to_several_labels(train, classes))
        held_out = held_out and to_several_labels(held_out, classes)
    config = config.copy_and_resolve_references()
    config.model.classes, config.data.class_names = classes, names
    config.model.multi_label = multi_label
    return fit_canvas(config.lock(), train), train, held_out


def _note_labels(videos: Videos) -> Videos:
    """Add a note on the numbers of labels, bool [n, classes], and on what follows from them."""
    labels = required_labels(videos).sum(axis=1)
    note = (
        f"{(labels > 1).sum():,} of {len(videos):,} videos have several labels and "
        f"{(labels < 1).sum():,} none: sigmoid loss, scored by mAP"
    )
    return replace(videos, notes=(*videos.notes, note))


def build_task(config: ConfigDict) -> Task:
    """Return the fine-tuning task of a locked config.

    Batches have "label", int32 [B] or, with `model.multi_label`, bool [B, classes], and in
    training "row" int32 [B], the index of each clip in the global batch. Augmentations are keyed
    by row, not by id: with repeated augmentation a batch contains each id several times. With a
    teacher the targets are its answers, see `distillation`, and "label" may be missing.
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
    augment_batch = make_batch_augment(config)
    multi_label = config.model.multi_label
    label_sums = multi_label_sums if multi_label else class_sums
    probabilities = functools.partial(class_probabilities, multi_label=multi_label)
    taught = build_class_teacher(config) if has_teacher(config) else None

    @jax.jit
    def init(key):
        return init_classifier(model, key, grid)

    def label_targets(batch, smoothing):
        if taught:  # gives the targets itself
            return jnp.zeros([len(batch["video"]), 1])
        return smooth_targets(batch["label"], classes=model.classes, smoothing=smoothing)

    def clip_sums(logits, targets, batch, video, teacher):
        if taught is None:
            return label_sums(logits, targets, batch["label"])
        answers = taught.logits(teacher, video)
        labels = batch.get("label")
        return taught_sums(label_sums, logits, answers, labels, probabilities=probabilities)

    def train_sums(params, batch, key, teacher=None):
        drop_keys = row_keys(key, batch["row"], stream=DROP)
        video, targets = augment_batch(batch, key, label_targets(batch, config.label_smoothing))
        patches = patchify(video, model.patch)
        logits: Any = model.apply({"params": params}, patches, grid, drop_keys)
        return jax.tree.map(jnp.sum, clip_sums(logits, targets, batch, video, teacher))

    def eval_logits(params, batch):
        return model.apply({"params": params}, patchify(batch["video"], model.patch), grid)

    def eval_sums(params, batch, teacher=None):
        logits, targets = eval_logits(params, batch), label_targets(batch, 0.0)
        return clip_sums(logits, targets, batch, batch["video"], teacher)

    def outputs(params: Params, batch: Batch, teacher: Params | None = None) -> jax.Array:
        own = probabilities(eval_logits(params, batch))
        if taught is None:
            return own
        return jnp.stack([own, probabilities(taught.logits(teacher, batch["video"]))], axis=1)

    return Task(
        init=init,
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=summarize_multi_label if multi_label else summarize,
        pictures=lambda params, batch: {},
        samplers=lambda: (train_sampler(config), eval_sampler(config)),
        check_clips=lambda clips: check_group(change, clips=clips),
        train_flops=train_flops + (taught.teacher.flops if taught else 0),
        summary=_summary(config, model, geometry)
        | {"FLOPs": flops_line(forward_flops, train_flops)}
        | ({"teacher": taught.line} if taught else {}),
        outputs=outputs if multi_label else None,
        score=(score_beside_teacher if taught else score_multi_label) if multi_label else None,
        teacher=taught.teacher if taught else None,
    )


def _summary(config: ConfigDict, model: VideoClassifier, geometry: Geometry) -> dict[str, str]:
    """Return the lines of the start banner, without the FLOPs."""
    clip, change = config.clip, config.augment
    frames = f"stride {clip.stride}" if clip.sampling == "dense" else "one of each part"
    return {
        "clip": f"{clip.frames} frames, {frames}, {clip.height} x {clip.width}, "
        f"{patches_text(geometry, model)}; {model.classes} classes",
        "positions": positions_line(geometry.grid, model),
        "augment": f"{change.operations} operations at magnitude {change.magnitude:g}, crops "
        f"from {change.min_area:g} of the image, flip {'on' if change.flip else 'off'}, "
        f"erase {change.erase:g}; {canvas_text(clip)}",
        "mix": f"mixup {change.mixup:g}, cutmix {change.cutmix:g}, in groups of {change.group}"
        + ("" if has_teacher(config) else f"; label smoothing {config.label_smoothing:g}"),
        "drop": f"path {config.drop_path:g}, head {config.head_dropout:g}",
        "compute": compute_line(model.run),
    }


def make_batch_augment(config: ConfigDict) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the augmentation of training: (batch, key of the step, targets) -> (video, targets).

    video: float32 [B, F, H, W, C], of the size of the model. targets: float32 [B, classes].
    """
    change = config.augment
    augment_clips = make_augment(
        config,
        operations=change.operations,
        magnitude=change.magnitude,
        deviation=change.deviation,
        erase=change.erase,
    )

    def augment_batch(batch, key, targets):
        keys = row_keys(key, batch["row"], stream=AUGMENT)
        return mix_clips(
            jax.random.fold_in(key, MIX),
            augment_clips(keys, batch["video"], batch.get("size")),
            targets,
            batch["row"],
            group=change.group,
            mixup=change.mixup,
            cutmix=change.cutmix,
            switch=change.switch,
        )

    return augment_batch


def make_augment(config: ConfigDict, **options: Any) -> Callable[..., jax.Array]:
    """Return `augment.clip.augment` for the clips of a config: (keys, video, size) -> video.

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
        map_clips=clip_mapper(),
        **options,
    )


def train_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of training clips of `config.clip`.

    Clips keep their size in the video, up to `build.canvas_size`.
    """
    height, width = canvas_size(config.clip)
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


def view_probabilities(
    model: VideoClassifier, params: Params, video: jax.Array, *, multi_label: bool
) -> jax.Array:
    """Return the class probabilities averaged over the views of each video.

    video: uint8 [B, V, F, H, W, C]. multi_label: see `class_probabilities`. Returns float32
    [B, classes], 0 to 1.
    """
    clips = video.reshape(-1, *video.shape[2:])
    patches, grid = patchify(clips, model.patch), video_grid(clips, model.patch)
    logits: Any = model.apply({"params": params}, patches, grid)
    probabilities = class_probabilities(logits, multi_label=multi_label)
    return probabilities.reshape(*video.shape[:2], -1).mean(axis=1)


def class_probabilities(logits: jax.Array | np.ndarray, *, multi_label: bool) -> jax.Array:
    """Return the probabilities of the classes, 0 to 1, of logits [..., classes].

    multi_label: whether each class is a question of its own; else they add up to 1.
    """
    return jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits)


def check_classes(model: ConfigDict) -> None:
    """Raise UserError for fewer than two classes, or one where a video may have none."""
    least = 1 if model.multi_label else 2
    if model.classes < least:
        raise UserError(
            f"model.classes is {model.classes}: give training data with labels of {least} or more "
            "classes, or --config.model.classes"
        )


def check_clip(clip: ConfigDict) -> None:
    """Raise UserError for an unknown sampling or a source smaller than the clip."""
    if clip.sampling not in SAMPLING:
        raise UserError(f"clip.sampling {clip.sampling!r} is unknown: use {' or '.join(SAMPLING)}")
    check_source(clip)


def check_source(clip: ConfigDict) -> None:
    """Raise UserError for a source that is smaller than the clip, and not 0."""
    for side in ("height", "width"):
        source, target = clip[f"source_{side}"], clip[side]
        if 0 < source < target:
            raise UserError(
                f"clip.source_{side} {source} is less than clip.{side} {target}: use {target} or "
                "more, or 0 to have it chosen"
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


def class_sums(
    logits: jax.Array, targets: jax.Array, labels: jax.Array | None
) -> dict[str, jax.Array]:
    """Return the terms of loss and accuracy of each clip, float32 [B].

    logits, targets: float32 [B, classes]. labels: int32 [B], None for only "error" and "count".
    "error" is the cross-entropy with the soft targets; "top1" and "top5" are 1 if the label is
    among the 1 or 5 highest logits, where of equal logits the lower class is first; "count" is 1.
    """
    loss = {
        "error": -(targets * jax.nn.log_softmax(logits)).sum(-1),
        "count": jnp.ones(len(logits)),
    }
    if labels is None:
        return loss
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
    # Not `logits > own`: with NaN logits that would count as correct.
    rank = (~(logits <= own) | ((logits == own) & earlier)).sum(-1)
    return loss | {"top1": (rank < 1).astype(jnp.float32), "top5": (rank < 5).astype(jnp.float32)}


def summarize(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the mean loss and, of the labels and the teacher, what there is.

    That is the fractions of clips classified correctly and those of `distillation`. In training the
    label of two mixed clips is that of the first, so top1 and top5 are far below their values in
    evaluation.
    """
    count = sums["count"]
    scores = {name: sums[name] / count for name in ("top1", "top5") if name in sums}
    return {"loss": sums["error"] / count, **scores, **summarize_teacher(sums)}


def multi_label_sums(
    logits: jax.Array, targets: jax.Array, labels: jax.Array | None
) -> dict[str, jax.Array]:
    """Return the terms of loss and hit rate of clips with several labels, float32 [...].

    They may also be the boxes of clips. logits, targets: float32 [..., classes]. labels: bool
    [..., classes], None for only "error" and "count". "error" is the binary cross-entropy of each
    class, averaged over the classes; "hit" is 1 if the highest logit is that of a label; "labelled"
    is 1 for clips that have a label; "count" is 1.
    """
    error = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    loss = {"error": error, "count": jnp.ones(logits.shape[:-1])}
    if labels is None:
        return loss
    best = logits.argmax(-1, keepdims=True)
    hit = jnp.take_along_axis(labels, best, axis=-1)[..., 0] & jnp.isfinite(logits).all(-1)
    return loss | {
        "hit": hit.astype(jnp.float32),
        "labelled": labels.any(-1).astype(jnp.float32),
    }


def summarize_multi_label(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the mean loss, and "hit": how often the highest logit is that of a label.

    sums: of clips, or of the boxes of a detector. Those without a label do not count in "hit". In
    training the labels of two mixed clips are those of the first. See also `summarize`.
    """
    hits = {
        name: sums[name] / jnp.maximum(sums["labelled"], 1)
        for name in ("hit", "teacher_hit")
        if name in sums
    }
    return {"loss": sums["error"] / sums["count"], **hits, **summarize_teacher(sums)}


def score_multi_label(
    videos: Videos, ids: np.ndarray, probabilities: np.ndarray
) -> dict[str, float]:
    """Return the mean average precision of probabilities [n, classes], see `Task.score`."""
    precisions = metrics.class_precisions(probabilities, required_labels(videos)[ids])
    return {"map": metrics.mean_precision(precisions)}


def score_beside_teacher(
    videos: Videos, ids: np.ndarray, probabilities: np.ndarray
) -> dict[str, float]:
    """Return the scores of a student and of its teacher, if the videos have labels.

    probabilities: [n, 2, classes], of both.
    """
    if videos.labels is None:
        return {}
    student, teacher = (score_multi_label(videos, ids, probabilities[:, i]) for i in (0, 1))
    return student | {f"teacher_{name}": value for name, value in teacher.items()}
