"""Draw videos of stick figures, to try the program without videos of your own.

Each video shows one figure that repeats one of six actions, and is in the folder of its action.
With --scenes a video shows one to three figures, and boxes.csv has a box around each of them with
its action, for action detection.

examples:
  videomae data draw videos/ --count 240
  videomae data draw scenes/train --scenes --count 60
  videomae data draw scenes/val --scenes --count 20 --seed 1
"""

import argparse

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="a new folder to write to")
    parser.add_argument(
        "--count",
        type=options.positive,
        default=120,
        metavar="N",
        help="number of videos (default: %(default)s)",
    )
    parser.add_argument(
        "--scenes", action="store_true", help="several figures a video, and a file of boxes"
    )
    parser.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        metavar="N",
        help="random seed; another one gives other videos (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from pathlib import Path

    from videomae_jax.data import figures
    from videomae_jax.errors import UserError

    folder = Path(args.folder).expanduser()
    if folder.exists():
        raise UserError(f"{folder} exists: give a new folder")
    draw = figures.draw_scenes if args.scenes else figures.draw_clips
    paths = draw(folder, args.count, seed=args.seed)
    boxes = f", their boxes in {folder / 'boxes.csv'}" if args.scenes else ""
    print(f"{folder}: {len(paths)} videos of {', '.join(figures.ACTIONS)}{boxes}")
