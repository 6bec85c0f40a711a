"""Score a classifier on labelled videos, each in several views: accuracy, or mAP."""

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax import metrics
from videomae_jax.config import parse_views
from videomae_jax.data.samplers import ViewSampler, distinct_views
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import (
    Videos,
    number_labels,
    required_labels,
    to_one_label,
    to_several_labels,
    used_labels,
)
from videomae_jax.devices.distributed import numbers_of_first
from videomae_jax.errors import UserError
from videomae_jax.inference.engine import (
    Predictions,
    check_batch,
    data_mesh,
    join_predictions,
    predict_batches,
)
from videomae_jax.inference.network import (
    Network,
    check_classifier,
    class_names,
    merging_facts,
)
from videomae_jax.inference.resumable import Parts, collect_rows, fingerprint, open_output
from videomae_jax.metrics import Proportion
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.paths import to_write, writing
from videomae_jax.progress import Progress
from videomae_jax.tasks.classify import view_probabilities, view_sampler
from videomae_jax.tasks.task import Params


class ClassScore(NamedTuple):
    """The accuracy of one class on its `videos`: `top1`, 0 to 1, None without videos."""

    name: str
    videos: int
    top1: float | None


class MultiLabelClassScore(NamedTuple):
    """The average precision of one class, 0 to 1; None if none of the videos has this label."""

    name: str
    videos: int  # that have the label
    precision: float | None


class Evaluation(NamedTuple):
    """The result of `evaluate` for a model of one label a video.

    top1, top5: accuracies with 95 % intervals. protocol: how they were measured, in words.
    classes: one score for each class. confusion: int64 [classes, classes], the number of videos
    by class (row) and prediction (column). ids: int64 [n], positions of the videos that could
    be read. probabilities: float32 [n, classes], the mean over the views. unreadable:
    {path: reason}. notes: lines to print, on unreadable and short videos.
    """

    top1: Proportion
    top5: Proportion
    protocol: str
    classes: list[ClassScore]
    confusion: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray
    unreadable: dict[str, str]
    notes: list[str]


class MultiLabelEvaluation(NamedTuple):
    """The result of `evaluate` for a model of several labels a video.

    map: the mean of the average precisions of the classes that have a video, 0 to 1. hit: how
    often the most probable class is one of the labels, of the videos that have any, with a 95 %
    interval. classes: one score for each class. The other fields are those of `Evaluation`.
    """

    map: float
    hit: Proportion
    protocol: str
    classes: list[MultiLabelClassScore]
    ids: np.ndarray
    probabilities: np.ndarray
    unreadable: dict[str, str]
    notes: list[str]


def evaluate(
    network: Network,
    params: Params,
    config: ConfigDict,
    videos: Videos,
    *,
    source: str,
    views: str | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    averaged: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = print,
) -> Evaluation | MultiLabelEvaluation | None:
    """Classify every video once and compare the predictions with the labels.

    source: the name of the model in messages. views: "SxC", S clips over time by C crops; None:
    the views of the recipe, reduced to those that differ in these videos. batch_size: videos on
    all devices, None for one on each. out: a folder for the scores, the list of unreadable videos
    and, of a model of one label a video, the confusion matrix; the same call resumes from the
    scores in it. averaged: whether `params` are the moving average, for the protocol. stopped:
    called after every batch; when it returns true, the scores are saved and the result is None.
    report: called with lines for the user.
    Raises UserError if the model has no classes, for labels that `label_videos` refuses, if no
    video can be read, for impossible views or batch sizes, and if the scores in `out` were
    computed with other settings.
    """
    check_classifier(config, source)
    assert isinstance(network, VideoClassifier)
    videos = label_videos(videos, config)
    segments, crops = choose_views(views, config, videos, report=report)
    sampler = view_sampler(config, segments=segments, crops=crops)
    batch_size = jax.device_count() if batch_size is None else batch_size
    check_batch(batch_size, data_mesh())

    def settings() -> dict[str, str | int]:
        return {
            **merging_facts(network),
            "model": fingerprint([params, config.model.to_json(), config.clip.to_json()]),
            "dtype": network.run.dtype.name,
            "videos": fingerprint([list(videos.paths), videos.labels]),
            "views": f"{segments}x{crops}",
        }

    folder, scores, bad = open_output(out, videos, settings, batch_size=batch_size)
    found = _score(
        network,
        params,
        config,
        videos,
        sampler=sampler,
        batch_size=batch_size,
        scores=scores,
        bad=bad,
        stopped=stopped,
        report=report,
    )
    if found is None:
        return None
    if not len(found.ids):
        raise UserError(f"nothing to measure: {bad}")
    read = f"{len(found.ids):,} of {len(videos):,} videos"
    protocol = f"{segments}x{crops} views, {_protocol(config, averaged=averaged)}, {read}"
    if network.merge_tokens:
        protocol += f", {network.merge_tokens} tokens merged in each block"
    labels, names = required_labels(videos)[found.ids], class_names(config)
    notes = [*([str(bad)] if len(bad) else []), *length_notes(sampler)]
    if config.model.multi_label:
        return _summarize_multi_label(found, labels, names, protocol, bad=bad, notes=notes)
    evaluation = _summarize(found, labels, names, protocol, bad=bad, notes=notes)
    if folder:
        write_confusion(folder, evaluation.confusion, names)
    return evaluation


def label_videos(videos: Videos, config: ConfigDict) -> Videos:
    """Return videos with the labels of a model: its numbers, one of a video or several.

    Raises UserError for videos without labels, for other classes than those of the model, and for
    several labels where the model knows one.
    """
    classes = config.model.classes
    videos = number_labels(videos, tuple(config.data.class_names))
    used = used_labels(videos)
    highest = int(used.max(initial=-1))
    if highest >= classes:
        raise UserError(
            f"{videos.name} has label {highest}, the model knows {classes} classes: use labels 0 "
            f"to {classes - 1}"
        )
    if not len(used):
        raise UserError(f"no video of {videos.name} has a label: there is nothing to score")
    if config.model.multi_label:
        return to_several_labels(videos, classes)
    return to_one_label(videos, reason="the model was trained on one label a video")


def choose_views(
    given: str | None, config: ConfigDict, videos: Videos, *, report: Callable[[str], None]
) -> tuple[int, int]:
    """Return (clips, crops): as given, or those of the recipe, reduced to different views.

    Raises UserError if more views are given than differ in these videos.
    """
    segments, crops = parse_views(given or config.views)
    found = distinct_views(view_sampler(config, segments=segments, crops=crops), videos)
    # Another process may have been unable to read one of the videos.
    most_segments, most_crops = numbers_of_first(found)
    most = most_segments, most_crops
    if most in ((0, 0), (segments, crops)):
        return segments, crops
    reasons = [
        f"{name} {wanted}, but there are only {possible} different ones"
        for name, wanted, possible in zip(("clips", "crops"), (segments, crops), most, strict=True)
        if possible < wanted
    ]
    text = f"{' and '.join(reasons)} in videos of this length and shape"
    if given:
        raise UserError(f"--views {given}: {text}: use --views {most[0]}x{most[1]}")
    report(f"views {config.views} of the recipe: {text}; {most[0]}x{most[1]} are used")
    return most


def length_notes(sampler: ViewSampler) -> list[str]:
    """Return lines about videos too short for one clip, or for clips that all differ."""
    lengths = list(sampler.counts.values())
    short = sum(length < sampler.span for length in lengths)
    same = sum(
        len(np.unique(sampler.indices(length), axis=0)) < sampler.segments for length in lengths
    )
    notes = []
    if short:
        notes.append(
            f"{short} videos are shorter than a clip of {sampler.span} frames: frames are repeated"
        )
    if same:
        notes.append(f"{same} videos are too short for {sampler.segments} different clips")
    return notes


def write_confusion(out: Path, counts: np.ndarray, names: tuple[str, ...]) -> None:
    """Write confusion.csv and confusion.png; rows are classes, columns predictions.

    Raises UserError if they cannot be written.
    """
    from matplotlib.figure import Figure

    with (
        writing(out / "confusion.csv"),
        to_write(out / "confusion.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["class", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=False))
    size = min(4 + 0.25 * len(names), 40)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 150:  # more names would be too small to read
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="class", title="fraction of each class")
    with writing(out / "confusion.png"), to_write(out / "confusion.png") as path:
        figure.savefig(path, dpi=110)


def _score(
    network: VideoClassifier,
    params: Params,
    config: ConfigDict,
    videos: Videos,
    *,
    sampler: ViewSampler,
    batch_size: int,
    scores: Parts | None,
    bad: BadVideos,
    stopped: Callable[[], bool],
    report: Callable[[str], None],
) -> Predictions | None:
    """Return the probabilities of all videos, resuming from the scores; None if stopped."""
    found = []
    begun = 0
    if scores and scores.position:
        (begun,) = scores.position
        for rows in scores.read("video", "probabilities", "frames"):
            found.append(Predictions(rows["video"], rows["probabilities"]))
            lengths = zip(rows["video"].tolist(), rows["frames"].tolist(), strict=True)
            sampler.counts.update(lengths)
        count = sum(len(part.ids) for part in found)
        report(f"{scores.folder}: {count:,} videos were scored before")
    batches = predict_batches(
        functools.partial(view_probabilities, network, multi_label=config.model.multi_label),
        params,
        videos,
        sampler=sampler,
        batch_size=batch_size,
        mesh=data_mesh(),
        threads=config.data.threads or None,
        bad=bad,
        start_batch=begun,
    )

    def columns(predictions: Predictions) -> dict[str, np.ndarray]:
        counts = [sampler.counts[number] for number in predictions.ids]
        return {
            "video": predictions.ids,
            "probabilities": predictions.values,
            "frames": np.array(counts, np.int64),
        }

    def show(progress: Progress, batch: int) -> None:
        done = min(batch * batch_size, len(videos))
        progress.show(
            batch,
            count=done - begun * batch_size,
            unit="videos",
            of=f"video {done:,} of {len(videos):,}",
        )

    computed = collect_rows(
        batches,
        scores,
        columns=columns,
        begun=begun,
        total=-(-len(videos) // batch_size),
        show=show,
        stopped=stopped,
    )
    return None if computed is None else join_predictions(found + computed)


def _summarize(
    found: Predictions,
    labels: np.ndarray,
    names: tuple[str, ...],
    protocol: str,
    *,
    bad: BadVideos,
    notes: list[str],
) -> Evaluation:
    counts = metrics.confusion(found.values, labels)
    classes = [
        ClassScore(name, int(row.sum()), float(row[index] / row.sum()) if row.sum() else None)
        for index, (name, row) in enumerate(zip(names, counts, strict=False))
    ]
    return Evaluation(
        top1=metrics.top(found.values, labels, k=1),
        top5=metrics.top(found.values, labels, k=5),
        protocol=protocol,
        classes=classes,
        confusion=counts,
        ids=found.ids,
        probabilities=found.values,
        unreadable=bad.reasons,
        notes=notes,
    )


def _summarize_multi_label(
    found: Predictions,
    labels: np.ndarray,
    names: tuple[str, ...],
    protocol: str,
    *,
    bad: BadVideos,
    notes: list[str],
) -> MultiLabelEvaluation:
    if not labels.any():
        raise UserError(f"nothing to measure, the readable videos have no labels: {bad}")
    precisions = metrics.class_precisions(found.values, labels)
    counts = labels.sum(axis=0).tolist()
    scored = sum(map(bool, counts))
    classes = [
        MultiLabelClassScore(name, count, precision if count else None)
        for name, count, precision in zip(names, counts, precisions.tolist(), strict=True)
    ]
    return MultiLabelEvaluation(
        map=metrics.mean_precision(precisions),
        hit=metrics.hit(found.values, labels),
        protocol=f"{protocol}, AP not interpolated, mean of {scored:,} of {len(names):,} classes",
        classes=classes,
        ids=found.ids,
        probabilities=found.values,
        unreadable=bad.reasons,
        notes=notes,
    )


def _protocol(config: ConfigDict, *, averaged: bool) -> str:
    """Return the clips and how their predictions are averaged, in words."""
    clip = config.clip
    frames = f"{clip.frames}x{clip.stride}" if clip.sampling == "dense" else f"{clip.frames} sparse"
    side = f"{clip.height}" if clip.height == clip.width else f"{clip.height}x{clip.width}"
    mean = "sigmoid mean" if config.model.multi_label else "softmax mean"
    weights = ", averaged weights" if averaged else ""
    return f"{frames} frames, {side} px, {mean}{weights}"
