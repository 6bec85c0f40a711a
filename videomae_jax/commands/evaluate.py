"""Measure a fine-tuned model on labelled videos, each in several views.

A view is one of S clips over time and one of C crops along the long side; the probabilities of
all views of a video are averaged. Prints top-1, top-5 and the accuracy of each class.

With --out, the same command resumes where it was stopped. Ctrl-C and SIGTERM save the scores and
exit with code 42. Scores in --out of another model, other videos, views, batch size or devices
are refused and never deleted: they may have taken hours.

examples:
  videomae evaluate --checkpoint runs/finetune --manifest val.csv
  videomae evaluate --checkpoint runs/finetune --manifest val.csv --views 5x3 --out runs/scores
"""

import argparse
import sys
from dataclasses import asdict

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_checkpoint(parser, what=f"a fine-tuned model: {options.CHECKPOINT}")
    parser.add_argument(
        "--manifest", metavar="VIDEOS", required=True, help="a list or a folder, with labels"
    )
    parser.add_argument(
        "--views", metavar="SxC", help="clips x crops (default: those of the recipe)"
    )
    options.add_ema(parser)
    options.add_batch_size(parser, of="videos", default="one per device")
    options.add_json(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for scores, confusion matrix and unreadable videos; resumes from the scores",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import jax

    from videomae_jax.data.sources import read_videos
    from videomae_jax.inference.evaluate import evaluate
    from videomae_jax.inference.network import check_classifier
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.training.signals import stop_signals

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    check_classifier(config, args.checkpoint)
    with stop_signals() as stop:
        found = evaluate(
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
    print(f"top-1 {found.top1}, top-5 {found.top5}, {found.protocol}")
    for note in found.notes:
        print(note)
    width = max(len(score.name) for score in found.classes)
    for score in found.classes:
        if score.top1 is not None:
            print(f"  {score.name:{width}}  {score.top1:7.1%} of {score.videos}")
    result = {
        "top1": asdict(found.top1),
        "top5": asdict(found.top5),
        "protocol": found.protocol,
        "checkpoint": args.checkpoint,
        "classes": [
            dict(name=score.name, count=score.videos, top1=score.top1) for score in found.classes
        ],
        "unreadable": found.unreadable,
    }
    options.write_json(args.json, result)
