"""Name the actions in videos with a fine-tuned model.

A window slides over each video; classes are ranked by their mean probability over all windows.
A model of several labels a video gives each class a probability of its own, and the classes above
50 % are printed. If a video cannot be read, the others are still processed, and the exit code is 1.

A detector names the actions of each person in one video, given boxes around them (--boxes), at
moments one second apart (--every). It prints and draws the actions above --threshold. The score of
a person comes from the person detector and does not change the other scores. docs/detection.md has
scripts that write a file of boxes.

examples:
  videomae predict holiday.mp4 --checkpoint runs/finetune
  videomae predict a.mp4 b.mp4 --checkpoint runs/finetune --top 3 --json classes.json
  videomae predict holiday.mp4 --checkpoint runs/detect --boxes boxes.csv --out drawn.mp4
  videomae predict holiday.mp4 --checkpoint runs/detect --boxes whole --every 0.5
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from videomae_jax.commands import options

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from videomae_jax.models.detector import VideoDetector

THRESHOLD, EVERY = 0.3, 1.0
# Options that only a detector has.
DETECTOR = ("boxes", "min_score", "every", "threshold", "out", "detections")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="a video file of any length")
    options.add_checkpoint(parser, what=f"a fine-tuned model: {options.CHECKPOINT}")
    options.add_ema(parser)
    options.add_merge_tokens(parser)
    parser.add_argument(
        "--top",
        type=int,
        metavar="K",
        help="number of classes to print (default: up to 5; of several labels a video, those above "
        "50 %%)",
    )
    options.add_json(
        parser, of="the classes of each video and of its windows, or the actions of each person,"
    )
    group = parser.add_argument_group("detectors")
    group.add_argument(
        "--boxes",
        metavar="FILE",
        help="boxes around persons, in a format of docs/reference/formats.md; whole: one box, the "
        "whole image",
    )
    group.add_argument(
        "--min-score",
        type=float,
        metavar="P",
        help="leave out persons of a lower score (default: as in the recipe, 0.8)",
    )
    group.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="time between the moments; each has the boxes nearest to it, at most half of this "
        f"away (default: {EVERY:g})",
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help=f"lowest score of an action that is printed or drawn (default: {THRESHOLD:g})",
    )
    group.add_argument(
        "--out",
        metavar="FILE.mp4",
        help="copy the video with boxes and actions drawn, without its sound",
    )
    group.add_argument(
        "--detections",
        metavar="FILE.csv",
        help="write the scores of all classes, as AVA's csv: video, second, x1, y1, x2, y2, class "
        "id, score",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.data.videos import Videos
    from videomae_jax.errors import UserError
    from videomae_jax.inference.network import build_network
    from videomae_jax.inference.predict import LIKELY, predict
    from videomae_jax.interop.checkpoint_files import load_checkpoint

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    if config.task == "detect":
        _detect(args, params, config)
        return
    options.refuse_detector_options(args, DETECTOR)
    network = build_network(config, merge_tokens=args.merge_tokens)
    videos = Videos(tuple(args.videos), None, None, "the videos given")
    options.report_merging(network, params, config, videos)
    results: dict[str, dict[str, Any]] = {}
    unreadable = 0
    multi_label = config.task == "classify" and config.model.multi_label
    if multi_label:
        print("several labels a video: each probability is that of one class, present or not")
    for found in predict(network, params, config, videos, source=args.checkpoint, top=args.top):
        if found.error:
            unreadable += 1
            print(f"cannot read {found.video}: {found.error}", file=sys.stderr)
            results[found.video] = dict(video=found.video, error=found.error)
            continue
        print(f"{found.video}  ({len(found.windows)} windows)")
        for likely in found.top:
            print(f"  {likely.probability:6.1%}  {likely.name}")
        if not found.top:
            print(f"  no class above {LIKELY:.0%}: --top 1 prints the most probable one")
        windows = [
            window._asdict() | {"top": [likely._asdict() for likely in window.top]}
            for window in found.windows
        ]
        top = [likely._asdict() for likely in found.top]
        results[found.video] = dict(
            video=found.video, multi_label=multi_label, top=top, windows=windows
        )
    options.write_json(args.json, [results[path] for path in videos.paths])
    if unreadable:
        raise UserError(f"{unreadable} of {len(videos)} videos unreadable")


def _detect(args: argparse.Namespace, params: Any, config: "ConfigDict") -> None:
    """Print the actions of each person, and write the files that are asked for."""
    from videomae_jax.data.decode import UnreadableVideo
    from videomae_jax.errors import UserError
    from videomae_jax.inference.detect import detect
    from videomae_jax.inference.detection_csv import ScoredBox, write_detections
    from videomae_jax.inference.draw import write_drawn_video
    from videomae_jax.inference.network import build_network
    from videomae_jax.paths import to_write

    if len(args.videos) > 1:
        raise UserError(f"{len(args.videos)} videos: give a detector one at a time")
    if args.top is not None:
        raise UserError("--top is for classifiers: give a detector --threshold")
    if args.boxes is None:
        raise UserError(
            f"{args.checkpoint} names the actions of people in boxes: give --boxes FILE (docs/"
            "detection.md has scripts that find people) or --boxes whole, the whole image"
        )
    threshold = THRESHOLD if args.threshold is None else args.threshold
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: use 0 to 1")
    (video,) = args.videos
    if args.out is not None:
        if Path(args.out).suffix.lower() != ".mp4":
            raise UserError(f"--out {args.out} does not end in .mp4")
        if args.out == video or Path(args.out).resolve() == Path(video).resolve():
            raise UserError(f"--out {args.out} is the video itself: use another name")
        options.make_folder_of(args.out)
    every = EVERY if args.every is None else args.every
    moments = []
    for moment in detect(
        cast("VideoDetector", build_network(config, merge_tokens=args.merge_tokens)),
        params,
        config,
        video,
        args.boxes,
        source=args.checkpoint,
        every=every,
        min_score=args.min_score,
    ):
        moments.append(moment)
        for found in moment.detections:
            ranked = sorted(found.actions.items(), key=lambda action: -action[1])
            actions = [f"{name} {score:.2f}" for name, score in ranked if score >= threshold]
            corners = " ".join(f"{corner:.3f}" for corner in found.box)
            print(
                f"{found.seconds:8.2f} s  {corners}  person {found.person:.2f}  "
                f"{', '.join(actions) or '-'}"
            )
    if args.detections is not None:
        boxes_of_moments = (
            ScoredBox(moment.name, moment.stamp, found.box, found.actions.values())
            for moment in moments
            for found in moment.detections
        )
        write_detections(args.detections, boxes_of_moments)
    people = [found._asdict() for moment in moments for found in moment.detections]
    options.write_json(args.json, dict(video=video, every=every, persons=people))
    if args.out is not None:
        try:
            with to_write(args.out) as file:
                count = write_drawn_video(
                    video, str(file), moments, every=every, threshold=threshold
                )
        except UnreadableVideo as error:
            raise UserError(f"cannot read {video}: {error}") from None
        print(f"{args.out}: {count:,} frames")
