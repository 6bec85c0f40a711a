"""The task of action detection: which actions each person does, given the boxes of persons.

Every present box counts the same, on any number of devices; absent ones fill up the batch.
"""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.augment.detection import augment, extend_boxes, fill_outside, whole_boxes
from videomae_jax.data.videos import Videos, pick_videos
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.detector import VideoDetector, init_detector
from videomae_jax.models.tokens import patchify, video_grid
from videomae_jax.tasks.build import (
    Geometry,
    clip_geometry,
    compute_line,
    encoder_fields,
    flops_line,
    patches_text,
    positions_line,
    row_keys,
)
from videomae_jax.tasks.classify import multi_label_sums, summarize_multi_label
from videomae_jax.tasks.detection_scores import evaluated_labels, score_boxes
from videomae_jax.tasks.task import Batch, Params, Task

if TYPE_CHECKING:  # it imports PyAV, which is only needed where videos are read
    from videomae_jax.data.samplers import KeyFrameSampler

# Random streams, folded into the key of the step.
AUGMENT, DROP = range(2)


def build_model(config: ConfigDict) -> VideoDetector:
    """Return the detector of `config.model`, executed as `config.run` specifies.

    Its positions are those of the grid of a training clip, and interpolated for other grids.
    """
    model, roi = config.model, config.roi
    if model.classes < 1:
        raise UserError("model.classes is 0: give --config.model.classes=N")
    detector = VideoDetector(
        classes=model.classes,
        roi_size=roi.size,
        roi_ratio=roi.ratio,
        roi_aligned=roi.aligned,
        drop_path=config.drop_path,
        **encoder_fields(config),
    )
    grid = detector.position_grid or clip_geometry(config.clip, detector).grid
    return detector.clone(position_grid=grid)


def prepare(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Write the classes of the training boxes into the config.

    If the config already has `model.classes`, it stays, and the targets of boxes get this length.
    Training key frames without boxes are left out. The notes of the training videos give their
    number, the number of classes that training never sees, and the loss of a predictor of the
    class frequencies. Raises UserError for more classes than the model has, for videos without
    boxes, and if no held-out box has an action that is scored.
    """
    classes = config.model.classes or len(train.class_names or ())
    train = fit_classes(train, classes)
    if train.key_frames is not None:  # synthetic videos have none
        if held_out:
            held_out = fit_classes(held_out, classes)
        train = _leave_out_empty(train)
        train = replace(train, notes=(*train.notes, *_notes(train, held_out)))
    config = config.copy_and_resolve_references()
    config.model.classes, config.data.class_names = classes, train.class_names
    labels = scored_labels(config)  # raises for a wrong list before the training
    if held_out and held_out.key_frames is not None:
        if not held_out.key_frames.targets[:, labels].any():
            raise UserError(
                f"no held-out box of {held_out.name} has an action among the {len(labels)} classes "
                "that are scored: there is no mAP; hold out others"
            )
    return config.lock(), train, held_out


def fit_classes(videos: Videos, classes: int) -> Videos:
    """Return key frames with targets bool [total, classes]; added classes are named by their id."""
    names, frames = videos.class_names or (), videos.key_frames
    known = len(names)
    if known > classes:
        raise UserError(
            f"{videos.name} has {known} classes, model.classes is {classes}: use "
            f"--config.model.classes={known} or more"
        )
    names += tuple(map(str, range(known + 1, classes + 1)))
    if frames is not None:
        targets = np.pad(frames.targets, ((0, 0), (0, classes - frames.targets.shape[1])))
        frames = replace(frames, targets=targets)
    return replace(videos, key_frames=frames, class_names=names)


def _leave_out_empty(videos: Videos) -> Videos:
    """Return the key frames that have boxes, with a note about the others."""
    assert videos.key_frames is not None
    filled = np.flatnonzero(videos.key_frames.counts).tolist()
    if not filled:
        raise UserError(f"{videos.name} has no boxes: there is nothing to train on")
    empty = len(videos) - len(filled)
    if not empty:
        return videos
    note = f"{empty:,} key frames without boxes left out"
    return replace(pick_videos(videos, filled), notes=(*videos.notes, note))


def _notes(train: Videos, held_out: Videos | None) -> list[str]:
    """Return lines about unseen classes and the loss of a predictor of the class frequencies."""
    assert train.key_frames is not None
    targets = train.key_frames.targets
    losses = f"{prevalence_loss(targets, targets):.4f}"
    notes = []
    if held_out:
        assert held_out.key_frames is not None
        others = held_out.key_frames.targets
        losses += f" ({prevalence_loss(targets, others):.4f} held out)"
        unseen = np.flatnonzero(others.any(0) & ~targets.any(0))
        if len(unseen):
            names = train.class_names or range(targets.shape[1])
            notes.append(
                f"{len(unseen)} classes of {held_out.name} that training never sees, first "
                f"{names[unseen[0]]}"
            )
    return [*notes, f"loss of a predictor of the class frequencies {losses}"]


def prevalence_loss(train: np.ndarray, targets: np.ndarray) -> float:
    """Return the loss on `targets` of a predictor of the class frequencies of `train`.

    Both are bool [boxes, classes]. A detector that ignores the pixels can do no better.
    """
    low = 1 / (2 * len(train))  # of a class that training never sees
    predicted, found = np.clip(train.mean(0), low, 1 - low), targets.mean(0)
    return float(-(found * np.log(predicted) + (1 - found) * np.log(1 - predicted)).mean())


def build_task(config: ConfigDict) -> Task:
    """Return the detection task of a locked config.

    Batches have "boxes" float32 [B, M, 4], x1, y1, x2, y2 in pixels of the clip, "present" bool
    [B, M] and "target" bool [B, M, classes]; in training "row" int32 [B], the index of each clip
    in the global batch, which keys the augmentations; in evaluation "size" int32 [B, 2].
    """
    model = build_model(config)
    clip, change, boxes = config.clip, config.augment, config.boxes
    if (change.hue or change.saturation or change.value) and len(model.mean) != 3:
        raise UserError(
            f"colours change in RGB only, clips have {len(model.mean)} channels: use "
            "--config.augment.hue=0 --config.augment.saturation=0 --config.augment.value=0"
        )
    geometry = clip_geometry(clip, model)
    grid = geometry.grid
    forward_flops, train_flops = flops.finetune_flops(
        model.encoder, tokens=geometry.tokens, values=geometry.values, classes=model.classes
    )
    augment_clip = functools.partial(
        augment,
        flip=change.flip,
        hue=change.hue,
        saturation=change.saturation,
        value=change.value,
        jitter=(0.0,) * 4 if boxes.whole else tuple(boxes.jitter),
    )

    @jax.jit
    def init(key):
        return init_detector(model, key, grid)

    def train_sums(params, batch, key):
        augment_keys = row_keys(key, batch["row"], stream=AUGMENT)
        drop_keys = row_keys(key, batch["row"], stream=DROP)
        if not config.layer_decay:
            params = freeze_blocks(params)
        persons = safe_boxes(batch, jnp.asarray([[clip.height, clip.width]]), whole=boxes.whole)
        video, persons = jax.vmap(augment_clip)(augment_keys, batch["video"], persons)
        patches = patchify(video, model.patch)
        logits: Any = model.apply({"params": params}, patches, grid, persons, drop_keys)
        return jax.tree.map(jnp.sum, box_sums(logits, batch["target"], batch["present"]))

    def eval_sums(params, batch):
        logits = box_logits(model, params, batch, whole=boxes.whole)
        return box_sums(logits, batch["target"], batch["present"])

    def outputs(params, batch):
        return jax.nn.sigmoid(box_logits(model, params, batch, whole=boxes.whole))

    return Task(
        init=init,
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=summarize_multi_label,
        pictures=lambda params, batch: {},
        samplers=lambda: (train_sampler(config), eval_sampler(config)),
        check_clips=lambda clips: None,
        train_flops=train_flops,
        summary=_summary(config, model, geometry)
        | {"FLOPs": flops_line(forward_flops, train_flops)},
        outputs=outputs,
        score=functools.partial(score_held_out, config),
    )


def score_held_out(
    config: ConfigDict, videos: Videos, ids: np.ndarray, probabilities: np.ndarray
) -> dict[str, float]:
    """Return the frame mAP with annotated boxes: `Task.score` of a config."""
    if videos.key_frames is None:  # synthetic
        return {}
    frames = videos.key_frames.pick(np.unique(ids))
    labels = scored_labels(config)
    return {"map": score_boxes(frames, frames, probabilities, evaluated=labels).value}


def _summary(config: ConfigDict, model: VideoDetector, geometry: Geometry) -> dict[str, str]:
    """Return the lines of the start banner about clips, boxes and augmentations."""
    clip, change, boxes, roi = config.clip, config.augment, config.boxes, config.roi
    if boxes.whole:
        persons = "the whole image for each"
    else:
        moves = ", ".join(f"{part:g}" for part in boxes.jitter)
        persons = (
            f"at most {boxes.max} a clip, {roi.size} x {roi.size} cells "
            f"{'' if roi.aligned else 'not '}aligned, sides moved by {moves}"
        )
    return {
        "clip": f"{clip.frames} frames, stride {clip.stride} at {clip.rate:g} a second, "
        f"{clip.height} x {clip.width} of short side {short_side(clip)}, "
        f"{patches_text(geometry, model)}; {model.classes} classes",
        "positions": positions_line(geometry.grid, model) + ", cubic for other sizes",
        "boxes": persons,
        "augment": f"flip {'on' if change.flip else 'off'}; hue +-{change.hue}, saturation "
        f"+-{change.saturation}, value +-{change.value}",
        "drop": f"path {config.drop_path:g}",
        "compute": compute_line(model.run),
    }


def scored_labels(config: ConfigDict) -> list[int]:
    """Return the labels of the classes that count in the mAP, see `evaluated_labels`."""
    data = config.data
    return evaluated_labels(data.class_names, config.model.classes, file=data.evaluated)


def lowest_score(config: ConfigDict, given: float | None) -> float:
    """Return the lowest score of a detected person: as given, or None for that of the recipe."""
    lowest = config.boxes.min_score if given is None else given
    if not 0 <= lowest <= 1:
        raise UserError(f"a lowest person score of {lowest:g}: use 0 to 1")
    return lowest


def short_side(clip: ConfigDict) -> int:
    """Return the short side in pixels to which images are resized before the crop."""
    return clip.short_side or round(clip.height * 8 / 7)


def train_sampler(config: ConfigDict) -> "KeyFrameSampler":
    """Return the sampler of training clips: a random crop around a key frame."""
    return _sampler(config, train=True)


def eval_sampler(config: ConfigDict) -> "KeyFrameSampler":
    """Return the sampler of evaluation clips: the whole image."""
    return _sampler(config, train=False)


def _sampler(config: ConfigDict, *, train: bool) -> "KeyFrameSampler":
    from videomae_jax.data.samplers import KeyFrameSampler

    clip = config.clip
    return KeyFrameSampler(
        frames=clip.frames,
        stride=clip.stride,
        rate=clip.rate,
        height=clip.height,
        width=clip.width,
        short_side=short_side(clip),
        patch=tuple(config.model.patch)[1:],
        channels=len(config.model.mean),
        persons=config.boxes.max,
        classes=config.model.classes,
        train=train,
    )


def freeze_blocks(params: Params) -> Params:
    """Stop the gradients of the patch embedding and the blocks of a detector.

    With a layer decay of 0 they do not change anyway; this saves the backward pass through them.
    """
    encoder = params["encoder"]
    frozen = {name: jax.lax.stop_gradient(encoder[name]) for name in ("embed", "blocks")}
    return {**params, "encoder": {**encoder, **frozen}}


def safe_boxes(batch: Batch, size: jax.Array, *, whole: bool) -> jax.Array:
    """Return the boxes of a batch, float32 [B, M, 4], and the whole clip for absent ones.

    size: int32 [B or 1, 2], the height and the width of each clip. whole: take the whole clip
    for all of them.
    """
    taken = batch["present"][..., None] & (not whole)
    # An absent box has no loss, but what is not finite would still spoil the gradient.
    return jnp.where(taken, batch["boxes"], whole_boxes(size))


def box_logits(
    model: VideoDetector,
    params: Params,
    batch: Batch,
    *,
    whole: bool,
    extend: tuple[float, float] = (0.0, 0.0),
) -> jax.Array:
    """Return the logits of each box of an evaluation batch, float32 [B, M, classes].

    batch: "video", "size", "boxes" and "present", see `build_task`. whole: `config.boxes.whole`.
    extend: how much longer to make the boxes, as fractions of their width and height. The
    reference extends detected boxes, by `config.boxes.extend`, but not annotated ones.
    """
    video, size = batch["video"], batch["size"]
    boxes = safe_boxes(batch, size, whole=whole)
    boxes = extend_boxes(boxes, size, x=extend[0], y=extend[1])
    grid = video_grid(video, model.patch)
    patches = patchify(fill_outside(video, size, model.mean), model.patch)
    logits: Any = model.apply({"params": params}, patches, grid, boxes)
    return logits


def box_sums(logits: jax.Array, targets: jax.Array, present: jax.Array) -> dict[str, jax.Array]:
    """Return the terms of loss and hit rate of each clip, float32 [B], sums over its boxes.

    logits: float32 [B, M, classes]. targets: bool [B, M, classes]. present: bool [B, M]. The terms
    of a box are those of a clip in `classify.multi_label_sums`.
    """
    # Before the loss, so that the gradient of an absent box is zero and never NaN.
    logits = jnp.where(present[..., None], logits, 0)
    terms = multi_label_sums(logits, targets.astype(jnp.float32), targets)
    return {name: jnp.where(present, term, 0).sum(-1) for name, term in terms.items()}
