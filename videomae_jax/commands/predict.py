"""Name the actions in videos with a fine-tuned model.

videomae predict VIDEO [VIDEO ...] --checkpoint WORKDIR [--top 5] [--json FILE]

A window slides over the whole video; the mean of its probabilities ranks the classes.
"""

import argparse
import sys

WINDOWS = 4  # at once, on the host and on the device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="a video file of any length")
    parser.add_argument(
        "--checkpoint",
        metavar="SRC",
        required=True,
        help="a fine-tuned model: a work directory, or whatever `videomae convert` reads",
    )
    parser.add_argument("--num-heads", type=int, metavar="N", help="for sizes not published")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="(default: %(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the classes of each video and of its windows here"
    )


def main(args: argparse.Namespace) -> None:
    import functools
    import json
    from pathlib import Path

    import jax

    from videomae_jax.data.decode import UnreadableVideo
    from videomae_jax.errors import UserError
    from videomae_jax.interop.files import load_checkpoint
    from videomae_jax.tasks.classify import build_model, view_probabilities

    checkpoint = load_checkpoint(args.checkpoint, num_heads=args.num_heads)
    params, config = jax.device_put(checkpoint.params), checkpoint.config
    if config.task != "classify":
        raise UserError(
            f"{args.checkpoint} was trained to {config.task}, it knows no classes: fine-tune it"
        )
    classes = config.model.classes
    if not 1 <= args.top <= classes:
        raise UserError(f"--top {args.top}: use 1 to {classes}, the number of classes")
    names = tuple(config.data.class_names) or tuple(map(str, range(classes)))
    predict = functools.partial(
        jax.jit(functools.partial(view_probabilities, build_model(config))), params
    )

    def best(probabilities):
        order = (-probabilities).argsort(kind="stable")[: args.top]
        return [dict(name=names[i], probability=float(probabilities[i])) for i in order]

    results, failed = [], 0
    for path in args.videos:
        try:
            frames, probabilities = predict_windows(predict, path, config)
        except UnreadableVideo as error:
            print(f"cannot read {path}: {error}", file=sys.stderr)
            results.append(dict(video=path, error=str(error)))
            failed += 1
            continue
        top = best(probabilities.mean(axis=0))
        windows = [
            dict(first_frame=int(places[0]), last_frame=int(places[-1]), top=best(row))
            for places, row in zip(frames, probabilities, strict=True)
        ]
        results.append(dict(video=path, top=top, windows=windows))
        print(f"{path}  ({len(windows)} windows)")
        for row in top:
            print(f"  {row['probability']:6.1%}  {row['name']}")
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if failed:
        raise UserError(f"{failed} of {len(args.videos)} videos unreadable")


def predict_windows(predict, path: str, config):
    """Return the frames of each window, int64 [n, F], and its probabilities [n, classes].

    predict: uint8 [B, V, F, H, W, C] -> [B, classes]. Pictures are cropped as in evaluation.
    """
    import numpy as np

    from videomae_jax.data import sampling
    from videomae_jax.data.clips import resize_crop
    from videomae_jax.data.decode import read_clip

    clip = config.clip
    size = dict(height=clip.height, width=clip.width)
    windows, rows = None, []

    def choose(count):
        nonlocal windows
        if windows is None and clip.sampling == "sparse":  # a clip is the whole video
            windows = sampling.sparse_views(count, frames=clip.frames)
        elif windows is None:
            windows = sampling.window_indices(count, frames=clip.frames, stride=clip.stride)
        # The last ones may be fewer: repeated, so that all have one shape.
        wanted = np.arange(len(rows), len(rows) + WINDOWS).clip(max=len(windows) - 1)
        return windows[wanted].ravel()

    while windows is None or len(rows) < len(windows):
        frames = read_clip(path, choose, channels=len(config.model.mean))
        box = sampling.center_crop_box(
            frames.shape[2], frames.shape[1], target_width=clip.width, target_height=clip.height
        )
        video = resize_crop(frames, box=box, **size)
        video = video.reshape(WINDOWS, 1, clip.frames, *video.shape[1:])
        rows += [*np.asarray(predict(video))][: len(windows) - len(rows)]
    return windows, np.stack(rows)
