"""Measure a fine-tuned model on labelled videos, or a detector on annotated key frames.

A classifier: the views of a video are S clips over time, each in C crops along the long side;
their probabilities are averaged. Prints top-1, top-5 and the accuracy of each class; for a model
of several labels a video the mean average precision (mAP) and the precision of each class.

A detector: names the actions in every box of the key frames. Prints the frame mAP at IoU 0.5 and
the average precision of each class. Without --boxes it is given the annotated boxes, which is an
upper bound; published numbers are with the boxes of a person detector.

With --out, the same command resumes where it was stopped. Ctrl-C and SIGTERM save the scores and
exit with code 42. If --out holds scores of another model, other videos, views, boxes, batch size
or devices, the command stops with an error and keeps them.

examples:
  videomae evaluate --checkpoint runs/finetune --manifest val.csv
  videomae evaluate --checkpoint runs/finetune --manifest val.csv --views 5x3 --out runs/scores
  videomae evaluate --checkpoint runs/detect --manifest val.csv --videos FOLDER --boxes found.csv
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from videomae_jax.commands import options

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from videomae_jax.inference.evaluate import Evaluation, MultiLabelEvaluation
    from videomae_jax.inference.evaluate_boxes import BoxEvaluation
    from videomae_jax.inference.network import Network

# Options that only a detector has.
DETECTOR = ("boxes", "min_score", "protocol", "evaluated", "excluded", "videos", "start")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_checkpoint(parser, what=f"a fine-tuned model: {options.CHECKPOINT}")
    parser.add_argument(
        "--manifest",
        metavar="VIDEOS",
        required=True,
        help="a list or a folder of videos, with labels; for a detector, its annotations",
    )
    parser.add_argument("--views", metavar="SxC", help="clips x crops (default: as in the recipe)")
    options.add_ema(parser)
    options.add_merge_tokens(parser)
    options.add_batch_size(parser, of="videos or key frames", default="one per device")
    options.add_json(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the scores, the confusion matrix or the detections, and the list of "
        "unreadable videos",
    )
    detector = parser.add_argument_group("detectors")
    detector.add_argument(
        "--boxes", metavar="FILE", help="boxes of a person detector (default: the annotated ones)"
    )
    detector.add_argument(
        "--min-score",
        type=float,
        metavar="P",
        help="lowest score of a person in --boxes (default: as in the recipe, 0.8)",
    )
    detector.add_argument(
        "--protocol",
        choices=("published", "official", "mmaction2"),
        help="how mAP is computed, see docs/evaluation.md (default: published)",
    )
    detector.add_argument(
        "--evaluated",
        metavar="FILE",
        help="list of the classes that count (default: as in the recipe; of AVA the usual 60)",
    )
    detector.add_argument(
        "--excluded",
        metavar="FILE",
        help="csv of key frames (video,second) that do not count (default: none, whatever the "
        "recipe leaves out)",
    )
    detector.add_argument(
        "--videos", metavar="FOLDER", help="folder of the videos (default: as in the recipe)"
    )
    detector.add_argument(
        "--start",
        metavar="SECOND",
        help="second of the annotations at which the video files begin (default: as in the recipe)",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import jax

    from videomae_jax.inference.network import build_network
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.training.signals import stop_signals

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    # As in the evaluations of the training where that runs here, so that the numbers agree.
    network = build_network(
        config,
        dtype=config.run.dtype,
        attention=config.run.attention,
        merge_tokens=args.merge_tokens,
    )
    measure = measure_detector if config.task == "detect" else measure_classifier
    with stop_signals() as stop:
        result = measure(args, network, params, config, lambda: stop.received is not None)
    if result is None:
        saved = "nothing is saved without --out, or with several processes"
        if args.out and jax.process_count() == 1:
            saved = f"saved {args.out}/scores; the same command resumes from there"
        print(f"{stop.received}: {saved}")
        sys.exit(options.EXIT_STOPPED)
    options.write_json(
        args.json, result | {"checkpoint": options.name_checkpoint(args.checkpoint, config)}
    )


def measure_classifier(
    args: argparse.Namespace,
    network: "Network",
    params: Any,
    config: "ConfigDict",
    stopped: Callable[[], bool],
) -> dict[str, Any] | None:
    """Print the scores of a classifier, and return them for JSON; None if stopped."""
    from videomae_jax.data.sources import read_videos
    from videomae_jax.inference.evaluate import Evaluation, evaluate
    from videomae_jax.inference.network import check_classifier

    check_classifier(config, args.checkpoint)
    options.refuse_detector_options(args, DETECTOR)
    videos = read_videos(args.manifest)
    merging = options.report_merging(network, params, config, videos)
    found = evaluate(
        network,
        params,
        config,
        videos,
        source=args.checkpoint,
        views=args.views,
        batch_size=args.batch_size,
        out=args.out,
        averaged=args.ema,
        stopped=stopped,
    )
    if found is None:
        return None
    result = print_accuracy(found) if isinstance(found, Evaluation) else print_precision(found)
    return result | {"protocol": found.protocol, "unreadable": found.unreadable} | merging


def measure_detector(
    args: argparse.Namespace,
    network: "Network",
    params: Any,
    config: "ConfigDict",
    stopped: Callable[[], bool],
) -> dict[str, Any] | None:
    """Print the scores of a detector, and return them for JSON; None if stopped."""
    from videomae_jax.errors import UserError
    from videomae_jax.inference.evaluate_boxes import evaluate_files

    if args.views:
        raise UserError("--views is for classifiers: a detector sees one clip of each key frame")
    found = evaluate_files(
        network,
        params,
        config,
        args.manifest,
        source=args.checkpoint,
        boxes=args.boxes,
        min_score=args.min_score,
        protocol=args.protocol or "published",
        evaluated=args.evaluated,
        excluded=args.excluded,
        videos=args.videos,
        start=args.start,
        batch_size=args.batch_size,
        out=args.out,
        averaged=args.ema,
        stopped=stopped,
    )
    return None if found is None else print_detections(found)


def print_accuracy(found: "Evaluation") -> dict[str, Any]:
    """Print the scores of a model of one label a video, and return them for JSON."""
    print(f"top-1 {found.top1}, top-5 {found.top5}, {found.protocol}")
    for note in found.notes:
        print(note)
    width = max(len(score.name) for score in found.classes)
    for score in found.classes:
        if score.top1 is not None:
            print(f"  {score.name:{width}}  {score.top1:7.1%} of {score.videos}")
    classes = [
        dict(name=score.name, count=score.videos, top1=score.top1) for score in found.classes
    ]
    return {"top1": asdict(found.top1), "top5": asdict(found.top5), "classes": classes}


def print_precision(found: "MultiLabelEvaluation") -> dict[str, Any]:
    """Print the scores of a model of several labels a video, and return them for JSON."""
    print(f"mAP {found.map:.1%}, most probable class right {found.hit}, {found.protocol}")
    for note in found.notes:
        print(note)
    width = max(len(score.name) for score in found.classes)
    for score in found.classes:
        if score.precision is not None:
            print(f"  {score.name:{width}}  AP {score.precision:6.1%}, {score.videos} videos")
    classes = [
        dict(name=score.name, count=score.videos, average_precision=score.precision)
        for score in found.classes
    ]
    return {"map": found.map, "hit": asdict(found.hit), "classes": classes}


def print_detections(found: "BoxEvaluation") -> dict[str, Any]:
    """Print the scores of a detector, and return them for JSON."""
    from videomae_jax.inference.evaluate_boxes import UPPER_BOUND

    bound = f" ({UPPER_BOUND})" if found.upper_bound else ""
    print(f"mAP {found.map:.2%}{bound}, {found.protocol}")
    if found.loss is not None:
        print(f"loss {found.loss:.4f}")
    for note in found.notes:
        print(note)
    for name, value in found.groups.items():
        print(f"{name} {value:.2%}")
    width = max(len(score.name) for score in found.classes)
    for score in found.classes:
        if score.precision is not None:
            print(f"  {score.name:{width}}  AP {score.precision:7.2%}, {score.annotated:,} boxes")
    return {
        "map": found.map,
        "groups": found.groups,
        "upper_bound": found.upper_bound,
        "loss": found.loss,
        "protocol": found.protocol,
        "key_frames": found.annotated,
        "classes": [
            dict(
                name=score.name,
                id=score.label + 1,
                average_precision=score.precision,
                annotated=score.annotated,
                detected=score.detected,
            )
            for score in found.classes
        ],
        "unreadable": found.unreadable,
        "notes": found.notes,
    }
