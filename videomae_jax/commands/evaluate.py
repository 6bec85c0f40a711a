"""Measure a fine-tuned model on labelled videos, each in several views.

The views of a video are S clips over time, each in C crops along the long side; their
probabilities are averaged. Prints top-1, top-5 and the accuracy of each class; for a model of
several labels a video the mean average precision (mAP) and the precision of each class.

With --out, the same command resumes where it was stopped. Ctrl-C and SIGTERM save the scores and
exit with code 42. If --out holds scores of another model, other videos, views, batch size or
devices, the command stops with an error and keeps them.

examples:
  videomae evaluate --checkpoint runs/finetune --manifest val.csv
  videomae evaluate --checkpoint runs/finetune --manifest val.csv --views 5x3 --out runs/scores
"""

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from videomae_jax.commands import options

if TYPE_CHECKING:
    from videomae_jax.inference.evaluate import Evaluation, MultiLabelEvaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_checkpoint(parser, what=f"a fine-tuned model: {options.CHECKPOINT}")
    parser.add_argument(
        "--manifest",
        metavar="VIDEOS",
        required=True,
        help="a list or a folder of videos, with labels",
    )
    parser.add_argument("--views", metavar="SxC", help="clips x crops (default: as in the recipe)")
    options.add_ema(parser)
    options.add_batch_size(parser, of="videos", default="one per device")
    options.add_json(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the scores, the list of unreadable videos and, for one label a video, the "
        "confusion matrix",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import jax

    from videomae_jax.data.sources import read_videos
    from videomae_jax.inference.evaluate import Evaluation, evaluate
    from videomae_jax.inference.network import build_network, check_classifier
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.training.signals import stop_signals

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    check_classifier(config, args.checkpoint)
    # As in the evaluations of the training, so that the numbers agree.
    network = build_network(config, dtype=config.run.dtype, attention=config.run.attention)
    with stop_signals() as stop:
        found = evaluate(
            network,
            params,
            config,
            read_videos(args.manifest),
            source=args.checkpoint,
            views=args.views,
            batch_size=args.batch_size,
            out=args.out,
            averaged=args.ema,
            stopped=lambda: stop.received is not None,
        )
    if found is None:
        saved = "nothing is saved without --out, or with several processes"
        if args.out and jax.process_count() == 1:
            saved = f"saved {args.out}/scores; the same command resumes from there"
        print(f"{stop.received}: {saved}")
        sys.exit(options.EXIT_STOPPED)
    result = print_accuracy(found) if isinstance(found, Evaluation) else print_precision(found)
    result |= {
        "protocol": found.protocol,
        "checkpoint": args.checkpoint,
        "unreadable": found.unreadable,
    }
    options.write_json(args.json, result)


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
