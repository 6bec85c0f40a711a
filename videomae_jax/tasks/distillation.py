"""Learn to classify from the class probabilities of a frozen teacher, in place of labels.

The loss is the cross-entropy with the probabilities that the teacher gives to the same augmented
and mixed clip, at temperature 1 and without hard labels (2106.05237). Labels serve only for scores,
and videos may have none.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from videomae_jax.data.videos import Videos, number_labels, to_several_labels, used_labels
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.tokens import patchify
from videomae_jax.tasks.build import Geometry, clip_geometry, encoder_fields
from videomae_jax.tasks.task import Params, Teacher
from videomae_jax.tasks.teacher import stored_params, teacher_config, teacher_line

# What a teacher of another task is.
KINDS = {"detect": "a detector", "probe": "a probe", "encoder": "an encoder without a head"}


class ClassTeacher(NamedTuple):
    """The teacher of a classifier. line: of the start banner."""

    logits: Callable[[Params, jax.Array], jax.Array]  # (its params, video) -> float32 [B, classes]
    teacher: Teacher
    line: str


def build_class_teacher(config: ConfigDict) -> ClassTeacher:
    """Return the teacher of a fine-tuning config; it sees the clips of `config.clip`."""
    source = _classifier_config(config)
    model = VideoClassifier(classes=source.model.classes, **encoder_fields(source))
    geometry = clip_geometry(config.clip, model)
    shapes = jax.eval_shape(
        functools.partial(init_classifier, model, grid=geometry.grid), jax.random.key(0)
    )
    forward_flops, _ = flops.finetune_flops(
        model.encoder, tokens=geometry.tokens, values=geometry.values, classes=model.classes
    )
    teacher = Teacher(stored_params(shapes, model.run.dtype), forward_flops)

    def logits(params: Params, video: jax.Array) -> Any:
        return model.apply({"params": params}, patchify(video, model.patch), geometry.grid)

    return ClassTeacher(logits, teacher, _line(config, source, model, geometry, teacher))


def _line(
    config: ConfigDict,
    source: ConfigDict,
    model: VideoClassifier,
    geometry: Geometry,
    teacher: Teacher,
) -> str:
    answers = "sigmoid" if source.model.multi_label else "softmax"
    line = teacher_line(config, model, geometry, teacher)
    line += f"; the targets are its {answers}, labels only score"
    if not source.class_names:
        line += "; it has no class names, its classes are taken to be those of the data, in order"
    return line


def taught_sums(
    clip_sums: Callable[..., dict[str, jax.Array]],
    logits: jax.Array,
    taught: jax.Array,
    labels: jax.Array | None,
    *,
    probabilities: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """Return the terms of the loss with the answers of a teacher, float32 [B].

    clip_sums: of logits, targets and labels, such as `classify.class_sums`. logits, taught:
    float32 [B, classes], of the student and the teacher. labels: None for none. probabilities: of
    logits. "top1_agreement" is 1 where the same class has the highest logit, "teacher_entropy" the
    loss of a student that answers as the teacher, the least there is; "teacher_top1" or
    "teacher_hit" score the teacher.
    """
    targets = probabilities(taught)
    theirs = clip_sums(taught, targets, labels)
    scores = {f"teacher_{name}": theirs[name] for name in ("top1", "hit") if name in theirs}
    return {
        **clip_sums(logits, targets, labels),
        **scores,
        "teacher_entropy": theirs["error"],
        "top1_agreement": (logits.argmax(-1) == taught.argmax(-1)).astype(jnp.float32),
    }


def adopt_classes(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Write the classes of the teacher into the config, and number all labels by them.

    Either list may have no labels, or only some of the classes. Raises UserError for classes that
    are not those of the teacher.
    """
    source = _classifier_config(config)
    names = _class_names(config, source, train, held_out)
    model, known = source.model, f"the teacher {config.teacher}"

    def number(videos: Videos) -> Videos:
        if videos.labels is None:
            return videos
        if videos.multi_label and not model.multi_label:
            raise UserError(
                f"{videos.name} has several labels a video, {known} gives one: use a teacher of "
                "several, or a list without labels"
            )
        videos = number_labels(videos, names, of=known)
        highest = max(used_labels(videos).tolist(), default=-1)
        if highest >= model.classes:
            raise UserError(
                f"{videos.name} has label {highest}, {known} has the labels 0 to "
                f"{model.classes - 1}: use its classes, or a list without labels"
            )
        return to_several_labels(videos, model.classes) if model.multi_label else videos

    config = config.copy_and_resolve_references()
    config.model.classes, config.data.class_names = model.classes, names
    config.model.multi_label = model.multi_label
    return config.lock(), number(train), held_out and number(held_out)


def _class_names(
    config: ConfigDict, source: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[str, ...]:
    """Return the class names of a run; () if neither the teacher nor the data have any."""
    known, classes = tuple(source.class_names), source.model.classes
    given = tuple(config.data.class_names)
    of_data = train.class_names or (held_out.class_names if held_out else None) or ()
    names = given or known or of_data
    if config.model.classes not in (0, classes):
        raise UserError(
            f"model.classes is {config.model.classes}, the teacher {config.teacher} has "
            f"{classes}: leave it out"
        )
    if known and names != known:
        raise UserError(
            f"data.class_names are not those of the teacher {config.teacher}, which begin with "
            f"{', '.join(known[:3])}: leave them out"
        )
    if names and len(names) != classes:
        raise UserError(
            f"{'data.class_names' if given else train.name} has {len(names)} classes, the teacher "
            f"{config.teacher} {classes} without names: give them in its order, with "
            "--config.data.class_names, or a list without labels"
        )
    return names


def _classifier_config(config: ConfigDict) -> ConfigDict:
    """Return `teacher_config`. Raises UserError for a teacher that does not classify."""
    source = teacher_config(config)
    if source.task != "classify":
        kind = KINDS[source.task] if source.task in KINDS else "a pre-training"
        raise UserError(
            f"the teacher {config.teacher} is {kind}, it gives clips no classes: use a fine-tuned "
            "classifier"
        )
    return source


def summarize_teacher(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the metrics of `taught_sums` that compare with the teacher, if there are any."""
    names = ("teacher_top1", "teacher_entropy", "top1_agreement")
    return {name: sums[name] / sums["count"] for name in names if name in sums}
