"""Show how a pre-trained model reconstructs the masked patches of a video.

Writes the original, the masked video, the reconstruction and its error next to each other, as a
video (.gif, .mp4) or a contact sheet (.png).

examples:
  videomae visualize holiday.mp4 --checkpoint runs/demo --out holiday.gif --ratio 0.9
  videomae visualize holiday.mp4 --checkpoint runs/demo --out a.png --compare-ratios 0.75,0.9,0.95
"""

import argparse
from typing import TYPE_CHECKING

from videomae_jax.commands import options

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The highest rate that players of GIFs support.
MAX_FPS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "video",
        metavar="VIDEO",
        nargs="?",
        help="a video file of any length (default: the first one held out from training)",
    )
    options.add_checkpoint(
        parser, what=f"a model with a decoder: {options.CHECKPOINT}", decoder=True
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        action="append",
        required=True,
        help="the file to write: .gif, .mp4 or .png; again for more files",
    )
    ratios = parser.add_mutually_exclusive_group()
    ratios.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="fraction of the patches to mask (default: as in training)",
    )
    ratios.add_argument(
        "--compare-ratios",
        type=_ratios,
        metavar="R,R,...",
        help="several ratios, one row for each",
    )
    parser.add_argument(
        "--mask",
        metavar="KIND",
        help="tube, random, frame or running_cell (default: as in training)",
    )
    parser.add_argument(
        "--statistics",
        choices=("visible", "truth"),
        default="visible",
        help="source of the colour and contrast of masked patches, for a model trained on "
        "normalized patches: visible, an estimate from the visible patches; truth, the masked "
        "patches themselves, which leaks the answer (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        metavar="N",
        help="random seed of the masks (default: %(default)s)",
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="take every N-th frame (default: as in training)"
    )
    parser.add_argument(
        "--max-frames",
        type=int,
        default=64,
        metavar="N",
        help="show at most N frames (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=int,
        default=8,
        metavar="N",
        help="frames per second of the written video (default: %(default)s)",
    )


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r} is not a list of numbers: use such as 0.75,0.9"
        raise argparse.ArgumentTypeError(message) from None


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax import pictures
    from videomae_jax.errors import UserError
    from videomae_jax.inference.network import build_network
    from videomae_jax.inference.visualize import check_decoder, visualize
    from videomae_jax.interop.checkpoint_files import load_checkpoint

    for file in args.out:
        pictures.check_ending(file)
        options.make_folder_of(file)
    if not 1 <= args.fps <= MAX_FPS:
        raise UserError(f"--fps {args.fps}: use 1 to {MAX_FPS}")
    params, config, *_ = load_checkpoint(
        args.checkpoint, num_heads=args.num_heads, decoder_num_heads=args.decoder_num_heads
    )
    check_decoder(params, args.checkpoint)
    if args.video is None:
        if not config.data.train:
            raise UserError(f"{args.checkpoint} names no videos: give one, VIDEO")
        args.video = _held_out(config)
    ratios = args.compare_ratios or ([] if args.ratio is None else [args.ratio])
    shown = visualize(
        build_network(config),
        params,
        config,
        args.video,
        source=args.checkpoint,
        ratios=ratios,
        kind=args.mask,
        statistics=args.statistics,
        seed=args.seed,
        stride=args.stride,
        max_frames=args.max_frames,
    )
    for title in shown.reconstructions:
        print(title)
    print(shown.label)
    for file in args.out:
        pictures.write(
            file,
            shown.frames,
            shown.reconstructions,
            times=shown.times,
            captions=[shown.label],
            fps=args.fps,
        )
        print(
            f"{file}: {len(shown.frames)} frames at stride {shown.times.step} of the "
            f"{shown.total} in {args.video}"
        )


def _held_out(config: "ConfigDict") -> str:
    """Return the first held-out video of a run, or its first training video."""
    from videomae_jax.errors import UserError
    from videomae_jax.tasks.build import open_videos

    train, held_out = open_videos(config)
    videos = held_out or train
    if videos.reader or videos.name == "synthetic":
        raise UserError(f"the run has no files of videos, it read {videos.name}: give one, VIDEO")
    return videos.paths[0]
