"""Frame mAP of a detector on annotated key frames, with annotated or with detected boxes."""

import csv
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.annotations import read_detections, read_excluded, with_detections
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, pick_videos
from videomae_jax.detection_metrics import check_protocol, group_precisions, is_ava
from videomae_jax.errors import UserError
from videomae_jax.inference.detection_csv import ScoredBox, write_detections
from videomae_jax.inference.engine import data_mesh, jit_batch, place_params, run_batches
from videomae_jax.inference.evaluate import unreadable_file
from videomae_jax.inference.network import Network, check_detector, class_names
from videomae_jax.inference.resumable import Parts, fingerprint
from videomae_jax.models.detector import VideoDetector
from videomae_jax.progress import Progress
from videomae_jax.tasks.build import open_key_frames
from videomae_jax.tasks.detect import (
    box_logits,
    box_sums,
    eval_sampler,
    fit_classes,
    short_side,
)
from videomae_jax.tasks.detection_scores import (
    Key,
    box_scores,
    evaluated_labels,
    frame_keys,
    present_boxes,
    score_boxes,
)
from videomae_jax.tasks.task import Batch, Params

UPPER_BOUND = "an upper bound: the annotated boxes were given"


class ClassScore(NamedTuple):
    """The average precision of one class, 0 to 1; None if it does not count in the mean.

    label: its id minus 1. annotated: boxes that have it. detected: boxes that were ranked.
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
    were given. annotated: key frames whose annotations count. key_frames: those that were read,
    with the given boxes. scores: float32 [boxes, K], by which the boxes were ranked in each class.
    unreadable: {path: reason}. notes: what was decided about the files, and what does not count.
    """

    map: float
    groups: dict[str, float]
    protocol: str
    classes: list[ClassScore]
    loss: float | None
    upper_bound: bool
    annotated: int
    key_frames: KeyFrames
    scores: np.ndarray
    unreadable: dict[str, str]
    notes: list[str]


class _Found(NamedTuple):
    """What the model computed, in rows that can be saved.

    A row is a box; a key frame without boxes has one row, whose box is -1. frames: int64 [n],
    numbers in the list. boxes: int64 [n], numbers in the key frame. probabilities: float32 [n,
    K]. errors: float32 [n], the loss of the whole key frame in its first row.
    """

    frames: np.ndarray
    boxes: np.ndarray
    probabilities: np.ndarray
    errors: np.ndarray


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
    annotated ones. min_score: the least score of a person, None for that of the recipe. evaluated:
    the classes that count, None for those of the recipe. videos, start: in the place of
    `config.data.videos` and `config.data.start`. Raises UserError for a bad file, and for boxes
    of other videos.
    """
    check_detector(config, source)
    if min_score is not None and boxes is None:
        raise UserError(
            f"the least score of a person is {min_score:g}, of boxes that a person detector found: "
            "give these (--boxes)"
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

    videos, start: in the place of `config.data.videos` and `config.data.start`. Raises UserError,
    see `read_key_frames`.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    data.excluded = ""  # those of the training
    data.classes = ""  # its names are in the config
    data.videos = data.videos if videos is None else videos
    data.start = data.start if start is None else str(start)
    found = replace(open_key_frames(config, source), decoder=data.decoder)
    return fit_classes(found, config.model.classes)


def give_boxes(
    config: ConfigDict, truth: Videos, file: str, *, min_score: float | None = None
) -> tuple[Videos, str]:
    """Return the key frames of a file of detected boxes, and what boxes these are, in words.

    min_score: the least score of a person, None for that of the recipe. Raises UserError for boxes
    of other videos, and if no score is so high.
    """
    least = config.boxes.min_score if min_score is None else min_score
    if not 0 <= least <= 1:
        raise UserError(f"a least person score of {least:g}: use 0 to 1")
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
    ones. boxes: what these are, for the protocol. protocol: see `detection_metrics`. evaluated:
    labels of the classes that count, None for all. excluded: key frames that do not count.
    batch_size: clips on all devices, None for one on each. out: a folder for the probabilities,
    the detections, the precision of each class and the list of unreadable videos; the same call
    resumes from the probabilities in it, also with another protocol. averaged: whether `params`
    are the moving average, for the protocol. stopped: called after every batch; when it returns
    true, the probabilities are saved and the result is None. report: called with lines for the
    user.
    Raises UserError for a model that is not a detector, an unknown protocol, too many boxes in a
    key frame, if no video can be read, and if the folder holds results of other settings.
    """
    check_detector(config, source)
    assert isinstance(network, VideoDetector)
    check_protocol(protocol, excluded=bool(excluded))
    shown = truth if detected is None else detected
    batch_size = batch_size or jax.device_count()
    folder = None if out is None else Path(out)
    scores = None
    # With several processes, one cannot know where the others stopped: nothing is saved.
    if folder and jax.process_count() == 1:
        settings = _settings(params, config, shown, boxes=boxes, batch_size=batch_size)
        scores = Parts(folder / "scores", settings | {"dtype": network.run.dtype.name})
    file = unreadable_file(folder, resumed=bool(scores and scores.position))
    bad = BadVideos(shown, max_share=1.0, file=file)
    found = _find(
        network,
        params,
        config,
        shown,
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


def _settings(
    params: Params, config: ConfigDict, shown: Videos, *, boxes: str, batch_size: int
) -> dict[str, str | int | float]:
    """Return what the probabilities depend on."""
    frames = shown.key_frames
    assert frames is not None
    parts = [config.model.to_json(), config.clip.to_json(), config.roi.to_json()]
    given = [frames.seconds, frames.offsets, frames.boxes, frames.targets]
    return {
        "model": fingerprint([params, *parts, config.boxes.to_json()]),
        "key-frames": fingerprint([list(shown.paths), *given]),
        "boxes": boxes or "annotated",
        "batch-size": batch_size,
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }


def _find(
    network: VideoDetector,
    params: Params,
    config: ConfigDict,
    shown: Videos,
    *,
    extend: tuple[float, float],
    batch_size: int,
    scores: Parts | None,
    bad: BadVideos,
    stopped: Callable[[], bool],
    report: Callable[[str], None],
) -> _Found | None:
    """Return the probabilities of all boxes, resuming from the saved ones; None if stopped."""
    found: list[_Found] = []
    begun = 0
    if scores and scores.position:
        (begun,) = scores.position
        found = [_Found(**rows) for rows in scores.read(*_Found._fields)]
        count = sum(len(np.unique(rows.frames)) for rows in found)
        report(f"{scores.folder}: {count:,} key frames were scored before")
    parts = eval_sampler(config).groups(shown)
    batches = _run(
        network,
        params,
        config,
        shown,
        parts,
        extend=extend,
        batch_size=batch_size,
        begun=begun,
        bad=bad,
    )
    total = sum(-(-len(indices) // batch_size) for indices, _ in parts)
    progress = Progress(total, begun=begun)
    with closing(batches):
        for batch, rows in enumerate(batches, begun + 1):
            found.append(rows)
            if scores:
                scores.add(rows._asdict(), position=(batch,))
            progress.show(
                batch,
                count=(batch - begun) * batch_size,
                unit="key frames",
                of=f"batch {batch:,} of {total:,}",
            )
            if stopped():
                break
        progress.close()
        if scores:
            scores.flush()
    if stopped():
        return None
    joined = _Found(*map(np.concatenate, zip(*found, strict=True)))
    order = np.lexsort((joined.boxes, joined.frames))
    return _Found(*(column[order] for column in joined))


def _run(
    network: VideoDetector,
    params: Params,
    config: ConfigDict,
    shown: Videos,
    parts: list[tuple[list[int], ClipSampler]],
    *,
    extend: tuple[float, float],
    batch_size: int,
    begun: int,
    bad: BadVideos,
) -> Generator[_Found, None, None]:
    """Yield the results of each batch of all parts of a list, after the first `begun`."""
    frames = shown.key_frames
    assert frames is not None

    def predict(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = box_logits(network, params, batch, whole=config.boxes.whole, extend=extend)
        sums = box_sums(logits, batch["target"], batch["present"])
        return jax.nn.sigmoid(logits), sums["error"]

    mesh = data_mesh()
    with jax.set_mesh(mesh):
        step, placed = jit_batch(predict, params, mesh), place_params(params, mesh)
        for indices, sampler in parts:
            count = -(-len(indices) // batch_size)
            if begun < count:
                batches = run_batches(
                    step,
                    placed,
                    pick_videos(shown, indices),
                    sampler=sampler,
                    batch_size=batch_size,
                    mesh=mesh,
                    threads=config.data.threads or None,
                    bad=bad,
                    start_batch=begun,
                )
                with closing(batches):
                    for ids, values in batches:
                        numbers = np.array(indices)[ids]
                        yield _to_rows(numbers, *values, counts=frames.counts[numbers])
            begun = max(0, begun - count)


def _to_rows(
    numbers: np.ndarray, probabilities: np.ndarray, errors: np.ndarray, *, counts: np.ndarray
) -> _Found:
    """Return the rows of some key frames. probabilities: [n, M, K]. counts: of their boxes."""
    rows = np.maximum(counts, 1)
    boxes = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows)
    return _Found(
        frames=np.repeat(numbers, rows),
        boxes=np.where(np.repeat(counts, rows) > 0, boxes, -1),
        probabilities=present_boxes(probabilities, rows),
        errors=np.where(boxes == 0, np.repeat(errors, rows), 0),
    )


def _summarize(
    found: _Found,
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
    known = set(frame_keys(frames))
    rows = zip(frame_keys(truth.key_frames), truth.paths, strict=True)
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
        ClassScore(
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
    count = sum(key not in out for key in frame_keys(annotated))
    upper_bound = truth is shown
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
        loss=float(found.errors.sum(dtype=np.float64) / max(len(probabilities), 1))
        if upper_bound
        else None,
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
    listed, shown = set(frame_keys(annotated)), set(frame_keys(frames))
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
    """Write classes.csv and classes.png, the average precision of each class."""
    from matplotlib.figure import Figure

    with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
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
    figure.savefig(folder / "classes.png", dpi=110)


def _clip_text(config: ConfigDict) -> str:
    clip = config.clip
    return (
        f"{clip.frames}x{clip.stride} frames at {clip.rate:g}/s, short side {short_side(clip)} px, "
        "whole width"
    )
