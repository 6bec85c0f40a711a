"""Measure features by the classes of their nearest neighbours; nothing is trained.

videomae knn --checkpoint SRC --train VIDEOS --eval VIDEOS [--k 1 5 20] [--json FILE]

Each evaluation video is told by the training videos whose features are the most similar.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="SRC",
        required=True,
        help="a model of any kind: a work directory, or whatever `videomae convert` reads",
    )
    parser.add_argument("--num-heads", type=int, metavar="N", help="for sizes not published")
    for name, what in (("train", "to compare with"), ("eval", "to tell")):
        parser.add_argument(
            f"--{name}",
            metavar="VIDEOS",
            required=True,
            help=f"a list or a folder of videos {what}, with labels",
        )
    parser.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[1, 5, 20],
        metavar="K",
        help="neighbours, an accuracy for each (default: 1 5 20)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="neighbours vote with exp(cosine / T) (default: 0.07)",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    weights.add_argument(
        "--untrained",
        action="store_true",
        help="use the model with fresh random weights instead, to compare",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="videos at once (default: 8 per device)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result here")


def main(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    import jax

    from videomae_jax import metrics
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.unreadable import BadVideos
    from videomae_jax.data.videos import number_labels
    from videomae_jax.devices.sharding import make_mesh
    from videomae_jax.errors import UserError
    from videomae_jax.inference.network import (
        build_network,
        clip_sampler,
        outputs,
        untrained_params,
    )
    from videomae_jax.inference.predict import predict_views
    from videomae_jax.interop.checkpoint_files import load_checkpoint

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    if args.untrained:
        params = untrained_params(config)
    train, held_out = (read_videos(path) for path in (args.train, args.eval))
    names = train.class_names or ()
    train, held_out = number_labels(train, names), number_labels(held_out, names)
    ks = tuple(sorted(set(args.k)))
    temperature = metrics.TEMPERATURE if args.temperature is None else args.temperature
    metrics.check_neighbours(ks, temperature=temperature, bank=len(train))
    network = build_network(config)

    def features(params, video):
        return outputs(network, params, video)["features"]

    def collect(videos):
        bad = BadVideos(videos, max_share=1.0)
        found = predict_views(
            features,
            params,
            videos,
            sampler=clip_sampler(config),
            batch_size=args.batch_size or 8 * jax.device_count(),
            mesh=make_mesh(dict(data=-1, fsdp=1, tensor=1)),
            threads=config.data.threads or None,
            bad=bad,
        )
        if not len(found.ids):
            raise UserError(f"{videos.name}: {bad}")
        return found.values, videos.labels[found.ids], bad

    (bank, bank_labels, bank_bad), (queries, labels, bad) = collect(train), collect(held_out)
    votes = metrics.neighbour_votes(bank, bank_labels, queries, ks=ks, temperature=temperature)
    top1 = {k: metrics.top(votes[k], labels, k=1) for k in ks}

    weights = "untrained weights" if args.untrained else "averaged weights" if args.ema else ""
    protocol = (
        f"1 clip of each video, cosine, temperature {temperature:g}, "
        f"{len(labels):,} of {len(held_out):,} videos against {len(bank):,} of {len(train):,}"
        + (weights and f", {weights}")
    )
    for k, share in top1.items():
        print(f"k {k:<4} top-1 {share}")
    print(protocol)
    for name, unread in ((train.name, bank_bad), (held_out.name, bad)):
        if len(unread):
            print(f"{name}: {unread}")
    if args.json:
        result = {
            "top1": {str(k): share._asdict() for k, share in top1.items()},
            "protocol": protocol,
            "checkpoint": args.checkpoint,
            "unreadable": {**bank_bad.reasons, **bad.reasons},
        }
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
