"""Frame mAP of a detector on annotated key frames, with annotated or with detected boxes."""

import csv
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.annotations import read_detections, read_excluded, with_detections
from videomae_jax.data.key_frames import Key, KeyFrames
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.detection_metrics import check_protocol, group_precisions, is_ava
from videomae_jax.devices.distributed import numbers_of_first
from videomae_jax.errors import UserError
from videomae_jax.inference.box_probabilities import (
    BoxProbabilities,
    compute_probabilities,
    probability_settings,
)
from videomae_jax.inference.detection_csv import ScoredBox, write_detections
from videomae_jax.inference.engine import check_batch, data_mesh
from videomae_jax.inference.network import Network, check_detector, class_names
from videomae_jax.inference.resumable import open_output
from videomae_jax.models.detector import VideoDetector
from videomae_jax.paths import to_write, writing
from videomae_jax.tasks.build import open_key_frames
from videomae_jax.tasks.detect import eval_sampler, fit_classes, lowest_score, short_side
from videomae_jax.tasks.detection_scores import (
    box_scores,
    evaluated_labels,
    score_boxes,
)
from videomae_jax.tasks.task import Params

UPPER_BOUND = "an upper bound: the annotated boxes were given"


class BoxClassScore(NamedTuple):
    """The average precision of one class, 0 to 1; None if it does not count in the mean.

    label: its id minus 1. annotated: the number of boxes that have it. detected: of boxes that
    were ranked.
    """

    name: str
    label: int
    precision: float | None
    annotated: int
    detected: int


class BoxEvaluation(NamedTuple):
    """The result of `evaluate_boxes`.

    map: mean average precision, 0 to 1. groups: means of the groups of AVA's classes. protocol:
    how it was measured, in words. classes: those that are scored. loss: the mean loss of a box;
    None for detected boxes, whose actions are not known. upper_bound: whether the annotated boxes
    were given. annotated: number of key frames whose annotations count. key_frames: those that
    were read, with the given boxes. scores: float32 [boxes, K], by which the boxes were ranked in
    each class. unreadable: {path: reason}. notes: lines to print, on the files and on what does
    not count.
    """

    map: float
    groups: dict[str, float]
    protocol: str
    classes: list[BoxClassScore]
    loss: float | None
    upper_bound: bool
    annotated: int
    key_frames: KeyFrames
    scores: np.ndarray
    unreadable: dict[str, str]
    notes: list[str]


def evaluate_files(
    network: Network,
    params: Params,
    config: ConfigDict,
    annotations: str,
    *,
    source: str,
    boxes: str | None = None,
    min_score: float | None = None,
    evaluated: str | None = None,
    excluded: str | None = None,
    videos: str | None = None,
    start: str | float | None = None,
    **options: Any,
) -> BoxEvaluation | None:
    """Open the files of an evaluation, and call `evaluate_boxes`, which has the other arguments.

    annotations, boxes, evaluated, excluded: files. boxes: of a person detector, None for the
    annotated ones. min_score: the lowest score of a person, None for that of the recipe.
    evaluated: the classes that count, None for those of the recipe. excluded: key frames that do
    not count, None for none; those of the recipe are of its training. videos, start: instead of
    `config.data.videos` and `config.data.start`. Raises UserError for a bad file, and for boxes
    of other videos.
    """
    check_detector(config, source)
    if min_score is not None and boxes is None:
        raise UserError(
            f"a lowest person score of {min_score:g} is for boxes of a person detector: give these "
            "(--boxes)"
        )
    truth = open_annotations(config, annotations, videos=videos, start=start)
    detected, given = None, ""
    if boxes is not None:
        detected, given = give_boxes(config, truth, boxes, min_score=min_score)
    labels = evaluated_labels(
        truth.class_names or (), config.model.classes, file=evaluated or config.data.evaluated
    )
    return evaluate_boxes(
        network,
        params,
        config,
        truth,
        source=source,
        detected=detected,
        boxes=given,
        evaluated=labels,
        excluded=sorted(read_excluded(excluded)) if excluded else (),
        **options,
    )


def open_annotations(
    config: ConfigDict, source: str, *, videos: str | None = None, start: str | float | None = None
) -> Videos:
    """Open annotations with the settings of a detector and its classes; no key frame is left out.

    videos, start: instead of `config.data.videos` and `config.data.start`. Raises UserError, see
    `read_key_frames`.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    data.excluded = ""  # it lists key frames of the training
    data.classes = ""  # its names are in the config
    data.videos = data.videos if videos is None else videos
    data.start = data.start if start is None else str(start)
    found = replace(open_key_frames(config, source), decoder=data.decoder)
    return fit_classes(found, config.model.classes)


def give_boxes(
    config: ConfigDict, truth: Videos, file: str, *, min_score: float | None = None
) -> tuple[Videos, str]:
    """Return the key frames of a file of detected boxes, and a description of the boxes.

    min_score: the lowest score of a person, None for that of the recipe. Raises UserError for
    boxes of other videos, and if no box has such a score.
    """
    least = lowest_score(config, min_score)
    videos = with_detections(truth, read_detections(file, truth), min_score=least)
    return videos, f"boxes of {Path(file).name} with a score of {least:g} or more"


def evaluate_boxes(
    network: Network,
    params: Params,
    config: ConfigDict,
    truth: Videos,
    *,
    source: str,
    detected: Videos | None = None,
    boxes: str = "",
    protocol: str = "published",
    evaluated: Sequence[int] | None = None,
    excluded: Sequence[Key] = (),
    batch_size: int | None = None,
    out: str | Path | None = None,
    averaged: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = print,
) -> BoxEvaluation | None:
    """Name the actions in every box once and compare them with the annotations.

    truth: annotated key frames, with the classes of the model. source: the name of the model in
    messages. detected: key frames with the boxes that the model is given, None for the annotated
    ones. boxes: a description of these, for the protocol. protocol: see `detection_metrics`.
    evaluated: labels of the classes that count, None for all. excluded: key frames that do not
    count. batch_size: clips on all devices, None for one on each. out: a folder for the
    probabilities, the detections, the precision of each class and the list of unreadable videos;
    the same call resumes from the probabilities in it, also with another protocol. averaged:
    whether `params` are the moving average, for the protocol. stopped: called after every batch;
    when it returns true, the probabilities are saved and the result is None. report: called with
    lines for the user.
    Raises UserError for a model that is not a detector, an unknown protocol, too many boxes in a
    key frame, if no video can be read, and if the folder holds results of other settings.
    """
    check_detector(config, source)
    assert isinstance(network, VideoDetector)
    check_protocol(protocol, excluded=bool(excluded))
    shown = truth if detected is None else detected
    batch_size = jax.device_count() if batch_size is None else batch_size
    check_batch(batch_size, data_mesh())
    groups = eval_sampler(config).groups(shown, numbers_of_first)
    settings = functools.partial(
        probability_settings, network, params, config, shown, groups, boxes=boxes
    )
    folder, scores, bad = open_output(out, shown, settings, batch_size=batch_size)
    found = compute_probabilities(
        network,
        params,
        config,
        shown,
        groups,
        extend=(0.0, 0.0) if detected is None else tuple(config.boxes.extend),
        batch_size=batch_size,
        scores=scores,
        bad=bad,
        stopped=stopped,
        report=report,
    )
    if found is None:
        return None
    if not len(found.frames):
        raise UserError(f"nothing to measure: {bad}")
    result = _summarize(
        found,
        config,
        truth,
        shown,
        boxes=boxes,
        protocol=protocol,
        evaluated=evaluated,
        excluded=excluded,
        averaged=averaged,
        bad=bad,
    )
    if folder:
        found_boxes = _list_boxes(result.key_frames, result.scores)
        write_detections(folder / "detections.csv", found_boxes)
        write_classes(folder, result)
    return result


def _summarize(
    found: BoxProbabilities,
    config: ConfigDict,
    truth: Videos,
    shown: Videos,
    *,
    boxes: str,
    protocol: str,
    evaluated: Sequence[int] | None,
    excluded: Sequence[Key],
    averaged: bool,
    bad: BadVideos,
) -> BoxEvaluation:
    """Compare the probabilities with the annotations of the key frames that could be read."""
    assert truth.key_frames is not None and shown.key_frames is not None
    read = np.unique(found.frames)
    frames = shown.key_frames.pick(read)
    # Key frames without detected boxes were never read; those of an unreadable video do not count.
    known = set(frames.keys)
    rows = zip(truth.key_frames.keys, truth.paths, strict=True)
    kept = [row for row, (key, path) in enumerate(rows) if key in known or path not in bad.reasons]
    annotated = truth.key_frames.pick(kept)
    probabilities = found.probabilities[found.boxes >= 0]
    precision = score_boxes(
        annotated,
        frames,
        probabilities,
        protocol=protocol,
        evaluated=evaluated,
        excluded=excluded,
    )
    names = truth.class_names or class_names(config)
    classes = [
        BoxClassScore(
            names[score.label],
            score.label,
            None if math.isnan(score.precision) else score.precision,
            score.annotated,
            score.detected,
        )
        for score in precision.classes
    ]
    counted = sum(score.precision is not None for score in classes)
    out = set(excluded)
    count = sum(key not in out for key in annotated.keys)
    upper_bound = truth is shown
    loss = float(found.errors.sum(dtype=np.float64) / max(len(probabilities), 1))
    product = protocol != "mmaction2" and not upper_bound
    ranked = "the action x that of the person" if product else "the action"
    weights = ", averaged weights" if averaged else ""
    return BoxEvaluation(
        map=precision.value,
        groups=group_precisions(precision.classes) if is_ava(names) else {},
        protocol=f"frame mAP at IoU 0.5, protocol {protocol}, mean of {counted:,} of "
        f"{len(names):,} classes, {count:,} key frames, {boxes or 'annotated boxes'}, "
        f"ranked by the score of {ranked}, {_clip_text(config)}{weights}",
        classes=classes,
        loss=loss if upper_bound else None,
        upper_bound=upper_bound,
        annotated=count,
        key_frames=frames,
        scores=box_scores(probabilities, frames.scores, protocol=protocol),
        unreadable=bad.reasons,
        notes=[
            *shown.notes,
            *_notes(truth.key_frames, annotated, frames, bad, protocol=protocol),
        ],
    )


def _notes(
    truth: KeyFrames, annotated: KeyFrames, frames: KeyFrames, bad: BadVideos, *, protocol: str
) -> list[str]:
    """Return lines about key frames that could not be read, or are in one of two files only."""
    notes = []
    if bad.reasons:
        path, reason = next(iter(bad.reasons.items()))
        notes.append(
            f"{len(bad):,} videos unreadable, first {path} ({reason}): "
            f"{len(truth) - len(annotated):,} of {len(truth):,} annotated key frames do not count"
        )
    listed, shown = set(annotated.keys), set(frames.keys)
    if more := len(shown - listed):
        wrong = "are wrong" if protocol == "published" else "do not count"
        notes.append(f"{more:,} key frames have boxes and no annotations: their detections {wrong}")
    return notes


def _list_boxes(frames: KeyFrames, scores: np.ndarray) -> Iterator[ScoredBox]:
    """Yield the boxes of all key frames with their scores, float32 [boxes, K]."""
    names = np.repeat(np.array(frames.names, object), frames.counts)
    seconds = np.repeat(frames.stamps, frames.counts)
    for name, second, corners, row in zip(names, seconds, frames.boxes, scores, strict=True):
        yield ScoredBox(name, float(second), corners.tolist(), row.tolist())


def write_classes(folder: Path, result: BoxEvaluation) -> None:
    """Write classes.csv and classes.png, the average precision of each class.

    Raises UserError if they cannot be written.
    """
    from matplotlib.figure import Figure

    with (
        writing(folder / "classes.csv"),
        to_write(folder / "classes.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["id", "name", "ap", "annotated", "detected"])
        for score in result.classes:
            precision = "" if score.precision is None else f"{score.precision:.6f}"
            row = [score.label + 1, score.name, precision, score.annotated, score.detected]
            writer.writerow(row)
    scored = [score for score in result.classes if score.precision is not None]
    scored.sort(key=lambda score: score.precision or 0.0)
    figure = Figure(figsize=(8, 1.5 + 0.22 * len(scored)), layout="constrained")
    axes = figure.subplots()
    values = [100 * (score.precision or 0.0) for score in scored]
    names = [f"{score.name} ({score.annotated:,})" for score in scored]
    bars = axes.barh(names, values)
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.axvline(100 * result.map, color="grey", linestyle="--", linewidth=1, zorder=0)
    axes.set(xlim=(0, 108), ylim=(-0.6, len(scored) - 0.4), xlabel="average precision, %")
    bound = f"\n{UPPER_BOUND}" if result.upper_bound else ""
    axes.set_title(f"mAP {100 * result.map:.2f} %; class (annotated boxes){bound}", fontsize=10)
    with writing(folder / "classes.png"), to_write(folder / "classes.png") as path:
        figure.savefig(path, dpi=110)


def _clip_text(config: ConfigDict) -> str:
    clip = config.clip
    return (
        f"{clip.frames}x{clip.stride} frames at {clip.rate:g}/s, short side {short_side(clip)} px, "
        "whole width"
    )
