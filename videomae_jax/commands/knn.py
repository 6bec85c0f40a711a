"""Measure frozen features by nearest-neighbour classification; nothing is trained.

Each evaluation video is classified by a vote of the training videos with the most similar features.

examples:
  videomae knn --checkpoint runs/demo --train train.csv --eval val.csv
  videomae knn --checkpoint runs/demo --train train.csv --eval val.csv --k 1 5 --json knn.json
"""

import argparse
from dataclasses import asdict

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    options.add_checkpoint(parser, what=f"a model: {options.CHECKPOINT}")
    for name, purpose in (("train", "to compare with"), ("eval", "to classify")):
        parser.add_argument(
            f"--{name}",
            metavar="VIDEOS",
            required=True,
            help=f"a list or a folder of videos {purpose}, with labels",
        )
    parser.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[1, 5, 20],
        metavar="K",
        help="numbers of neighbours; prints an accuracy for each (default: 1 5 20)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="a neighbour votes with weight exp(cosine / T) (default: 0.07)",
    )
    weights = parser.add_mutually_exclusive_group()
    options.add_ema(weights)
    weights.add_argument(
        "--untrained",
        action="store_true",
        help="use random weights, as a baseline",
    )
    options.add_batch_size(parser, of="videos", default="8 per device")
    options.add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax import metrics
    from videomae_jax.data.sources import read_videos
    from videomae_jax.inference.knn import evaluate_neighbours
    from videomae_jax.inference.network import build_network, untrained_params
    from videomae_jax.interop.checkpoint_files import load_checkpoint

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    weights = ", averaged weights" if args.ema else ""
    if args.untrained:
        params, weights = untrained_params(config), ", untrained weights"
    found = evaluate_neighbours(
        build_network(config),
        params,
        config,
        read_videos(args.train),
        read_videos(args.eval),
        ks=tuple(sorted(set(args.k))),
        temperature=metrics.TEMPERATURE if args.temperature is None else args.temperature,
        batch_size=args.batch_size,
    )
    protocol = found.protocol + weights
    for k, accuracy in found.top1.items():
        print(f"k {k:<4} top-1 {accuracy}")
    print(protocol)
    for note in found.notes:
        print(note)
    result = {
        "top1": {str(k): asdict(accuracy) for k, accuracy in found.top1.items()},
        "protocol": protocol,
        "checkpoint": options.name_checkpoint(args.checkpoint, config),
        "unreadable": found.unreadable,
    }
    options.write_json(args.json, result)
