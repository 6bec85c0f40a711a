"""Go from a folder of videos to a classifier in minutes on two CPU cores.

Pre-trains a tiny VideoMAE without labels and draws its reconstruction of a held-out video. If the
folder has a sub-folder for each class, it then trains two classifiers for the same number of steps,
one from the pre-trained model and one from scratch, compares them on the held-out videos, and
predicts the class of one of them. Every step is a `videomae` command, which is printed. While it
trains, Ctrl-C and SIGTERM save a checkpoint. The same command goes on where it was stopped.

examples:
  videomae demo my_videos/ --workdir runs/demo
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from videomae_jax.commands import options

HOLDOUT = 0.1  # of a folder without train.csv and val.csv


class Part(NamedTuple):
    """A part of the demo. command: the arguments of `videomae`."""

    title: str
    command: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="a folder of videos; if it has train.csv and val.csv, they are its lists, otherwise "
        f"{HOLDOUT:.0%}% of the videos are held out",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        default=Path("runs/demo"),
        help="folder for all results, made if missing (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.data.sources import read_videos
    from videomae_jax.errors import UserError

    began = time.monotonic()
    lists = [args.folder / name for name in ("train.csv", "val.csv")]
    if not all(file.exists() for file in lists):
        lists = [args.workdir / name for name in ("train.csv", "val.csv")]
        listing = ("data", "list", str(args.folder), f"--out={lists[0]}", f"--val={lists[1]}")
        run_part(Part("List the videos", (*listing, f"--holdout={HOLDOUT}")))
    videos = [read_videos(file) for file in lists]
    for file, listed in zip(lists, videos, strict=True):
        if listed.multi_label:
            raise UserError(
                f"{file} has several labels a video, the demo compares accuracies of one: use "
                "`videomae train --config=finetune:tiny,custom`"
            )
    labels, held_out = videos[0].labels, videos[1].paths
    video = held_out[len(held_out) // 2]
    parts = learn_parts(lists, video, args.workdir)
    if labels is not None:
        parts += classify_parts(lists, video, args.workdir)
    for number, part in enumerate(parts, 1):
        run_part(part._replace(title=f"{number}/{len(parts)}  {part.title}"))
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes.")
    print(f"The reconstruction: {args.workdir}/reconstruction.png and .gif")
    if labels is not None:
        print_accuracies(args.workdir, videos=len(held_out), classes=len(set(labels.tolist())))


def learn_parts(lists: list[Path], video: str, workdir: Path) -> list[Part]:
    """Return the parts that use no labels."""
    pretrained = workdir / "pretrained"
    train = ("train", "--config=demo", f"--workdir={pretrained}", *list_options(lists))
    pictures = [f"--out={workdir}/reconstruction.{ending}" for ending in ("png", "gif")]
    visualize = ("visualize", video, f"--checkpoint={pretrained}", *pictures)
    return [
        Part("Pre-train: predict the hidden parts of the videos, without labels", train),
        Part("Reconstruct a video that it has not seen", visualize),
    ]


def classify_parts(lists: list[Path], video: str, workdir: Path) -> list[Part]:
    """Return the parts that use the labels."""
    train = ("train", "--config=demo:classify", *list_options(lists))
    tuned, scratch = workdir / "classifier", workdir / "from_scratch"
    return [
        Part(
            "Fine-tune: learn the classes from the pre-trained model",
            (*train, f"--workdir={tuned}", f"--config.init_from={workdir / 'pretrained'}"),
        ),
        Part("The same from scratch, to compare", (*train, f"--workdir={scratch}")),
        Part("Predict the class of a video", ("predict", video, f"--checkpoint={tuned}")),
    ]


def list_options(lists: list[Path]) -> list[str]:
    """Return the options of `videomae train` for the lists of training and validation."""
    return [f"--config.data.train={lists[0]}", f"--config.data.eval={lists[1]}"]


def run_part(part: Part) -> None:
    """Print a part and run it; exit with its code if it fails.

    Ctrl-C and SIGTERM stop the part, which has the time to save what it has done.
    """
    print(f"\n{part.title}\n$ videomae {shlex.join(part.command)}", flush=True)
    stopped = []
    process: subprocess.Popen | None = None

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        if process and number == signal.SIGTERM:  # a terminal sends Ctrl-C to both processes
            process.send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        started = subprocess.Popen([sys.executable, "-m", "videomae_jax.cli", *part.command])
        early = signal.SIGTERM in stopped  # when there was no process to send it to
        process = started
        if early:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:  # a signal ended it
        code = 128 - code
    if code or stopped:
        sys.exit(code or options.EXIT_STOPPED)


def print_accuracies(workdir: Path, *, videos: int, classes: int) -> None:
    """Print the accuracies of both classifiers on the held-out videos, with their intervals.

    videos: how many are held out. Those that cannot be read count in the width of the intervals.
    """
    from videomae_jax.metrics import wilson
    from videomae_jax.training.workdir import read_metrics

    print(f"Held-out videos that are classified correctly (95 % interval of {videos:,} videos):")
    for title, folder in (("pre-trained", "classifier"), ("from scratch", "from_scratch")):
        scores = [
            row["eval/top1"] for row in read_metrics(str(workdir / folder)) if "eval/top1" in row
        ]
        print(f"  {title:14s} {wilson(round(scores[-1] * videos), videos)}")
    print(f"  {'chance':14s} {100 / classes:.1f} %")
