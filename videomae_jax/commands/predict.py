"""Name the actions in videos with a fine-tuned model.

A window slides over each video; classes are ranked by their mean probability over all windows.
Of a model of several labels a video, each probability is that of one class, present or not, and
the classes above 50 % are printed.
If a video cannot be read, the others are still processed, and the exit code is 1.

examples:
  videomae predict holiday.mp4 --checkpoint runs/finetune
  videomae predict a.mp4 b.mp4 --checkpoint runs/finetune --top 3 --json classes.json
"""

import argparse
import sys
from typing import Any

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="a video file of any length")
    options.add_checkpoint(parser, what=f"a fine-tuned model: {options.CHECKPOINT}")
    options.add_ema(parser)
    parser.add_argument(
        "--top",
        type=int,
        metavar="K",
        help="number of classes to print (default: up to 5; of several labels a video, those above "
        "50 %%)",
    )
    options.add_json(parser, of="the classes of each video and of its windows")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.data.videos import Videos
    from videomae_jax.errors import UserError
    from videomae_jax.inference.network import build_network
    from videomae_jax.inference.predict import LIKELY, predict
    from videomae_jax.interop.checkpoint_files import load_checkpoint

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    network = build_network(config)
    videos = Videos(tuple(args.videos), None, None, "the videos given")
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
