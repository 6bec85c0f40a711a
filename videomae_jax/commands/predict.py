"""Name the actions in videos with a fine-tuned model.

videomae predict VIDEO [VIDEO ...] --checkpoint WORKDIR [--top 5] [--json FILE]

A window slides over the whole video; the mean of its probabilities ranks the classes.
"""

import argparse
import sys

from videomae_jax.host import count_cores

WINDOWS = 4  # at once, on each device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="a video file of any length")
    parser.add_argument(
        "--checkpoint",
        metavar="SRC",
        required=True,
        help="a fine-tuned model: a work directory, or whatever `videomae convert` reads",
    )
    parser.add_argument("--num-heads", type=int, metavar="N", help="for sizes not published")
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    parser.add_argument("--top", type=int, metavar="K", help="(default: up to 5)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the classes of each video and of its windows here"
    )


def main(args: argparse.Namespace) -> None:
    import json
    from contextlib import closing
    from pathlib import Path

    import jax
    import numpy as np

    from videomae_jax.data.unreadable import BadVideos
    from videomae_jax.data.videos import Videos
    from videomae_jax.devices.sharding import make_mesh
    from videomae_jax.errors import UserError
    from videomae_jax.inference.features import window_outputs
    from videomae_jax.inference.network import build_network
    from videomae_jax.inference.windows import WindowSampler, read_windows
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.progress import Progress

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    if config.task != "classify":
        raise UserError(
            f"{args.checkpoint} was trained to {config.task}, it knows no classes: fine-tune it"
        )
    classes, clip = config.model.classes, config.clip
    top = min(5, classes) if args.top is None else args.top
    if not 1 <= top <= classes:
        raise UserError(f"--top {top}: use 1 to {classes}, the number of classes")
    names = tuple(config.data.class_names) or tuple(map(str, range(classes)))
    dense = clip.sampling == "dense"  # else a clip is the whole video
    sampler = WindowSampler(
        frames=clip.frames,
        stride=clip.stride if dense else None,
        hop=clip.frames * clip.stride if dense else None,
        height=clip.height,
        width=clip.width,
        channels=len(config.model.mean),
    )

    def best(probabilities):
        order = (-probabilities).argsort(kind="stable")[:top]
        return [dict(name=names[i], probability=float(probabilities[i])) for i in order]

    def describe(path, found):
        likely = best(np.mean([probabilities for _, probabilities in found], axis=0))
        print(f"{path}  ({len(found)} windows)")
        for row in likely:
            print(f"  {row['probability']:6.1%}  {row['name']}")
        windows = [
            dict(
                first_frame=int(window.frames[0]),
                last_frame=int(window.frames[-1]),
                start=window.seconds[0],
                end=window.seconds[1],
                top=best(probabilities),
            )
            for window, probabilities in found
        ]
        return dict(video=path, top=likely, windows=windows)

    videos = Videos(tuple(args.videos), None, None, "the videos given")
    bad = BadVideos(videos, max_share=1.0)
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.local_devices())
    reader = read_windows(
        videos,
        list(range(len(videos))),
        sampler=sampler,
        first=0,
        bad=bad,
        threads=count_cores(),
    )
    results, found, progress = {}, {}, Progress(len(videos))
    with closing(reader) as windows:
        batches = window_outputs(
            build_network(config),
            params,
            windows,
            name="logits",
            batch_size=WINDOWS * mesh.size,
            mesh=mesh,
        )
        done = 0
        for rows, logits in batches:
            for (number, window), row in zip(rows, jax.nn.softmax(logits), strict=True):
                found.setdefault(number, []).append((window, np.asarray(row)))
                done += 1
                if window.number + 1 == window.count:
                    progress.close()
                    results[number] = describe(videos.paths[number], found.pop(number))
            of = f"video {number + 1:,} of {len(videos):,}"
            share = number + (window.number + 1) / window.count
            progress.show(share, count=done, unit="windows", of=of)
    progress.close()
    for number, path in enumerate(videos.paths):
        if path in bad.reasons:
            print(f"cannot read {path}: {bad.reasons[path]}", file=sys.stderr)
            results[number] = dict(video=path, error=bad.reasons[path])
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        ordered = [results[number] for number in range(len(videos))]
        Path(args.json).write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    if bad.reasons:
        raise UserError(f"{len(bad)} of {len(videos)} videos unreadable")
