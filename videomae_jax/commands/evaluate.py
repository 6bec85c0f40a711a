"""Measure a fine-tuned model on labelled videos, each in several views.

videomae evaluate --checkpoint WORKDIR --manifest VIDEOS [--views 5x3] [--out DIR]

Views are clips over time x crops along the long side; the mean of their probabilities counts.
With --out the same command goes on where it was stopped; Ctrl-C and SIGTERM save and exit with
42. Scores of another model, other videos, views, batch or devices are refused, not thrown away:
they may have taken hours.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="SRC",
        required=True,
        help="a fine-tuned model: a work directory, or whatever `videomae convert` reads",
    )
    parser.add_argument("--num-heads", type=int, metavar="N", help="for sizes not published")
    parser.add_argument(
        "--manifest", metavar="VIDEOS", required=True, help="a list or a folder, with labels"
    )
    parser.add_argument("--views", metavar="SxC", help="clips x crops (default: of the recipe)")
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="videos at once (default: one per device)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result here")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write scores, confusion matrix and unreadable videos here, and go on from the scores",
    )


def main(args: argparse.Namespace) -> None:
    import functools
    import json
    import sys
    from contextlib import closing
    from pathlib import Path

    import jax
    import numpy as np

    from videomae_jax import metrics
    from videomae_jax.commands.train import EXIT_STOPPED
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.unreadable import BadVideos
    from videomae_jax.data.videos import number_labels
    from videomae_jax.devices.sharding import make_mesh
    from videomae_jax.errors import UserError
    from videomae_jax.inference.predict import Predictions, join_views, predict_batches
    from videomae_jax.inference.resumable import Parts, fingerprint
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.progress import Progress
    from videomae_jax.tasks.classify import build_model, view_probabilities, view_sampler
    from videomae_jax.training.signals import stop_signals

    params, config, *_ = load_checkpoint(args.checkpoint, num_heads=args.num_heads, ema=args.ema)
    if config.task != "classify":
        raise UserError(
            f"{args.checkpoint} was trained to {config.task}, it knows no classes: fine-tune it"
        )
    videos = number_labels(read_videos(args.manifest), tuple(config.data.class_names))
    classes = config.model.classes
    if videos.labels.max() >= classes:
        raise UserError(
            f"{videos.name} has label {videos.labels.max()}, the model knows {classes} classes: "
            f"use labels 0 to {classes - 1}"
        )
    segments, crops = choose_views(args.views, config, videos)
    sampler = view_sampler(config, segments=segments, crops=crops)
    batch_size = args.batch_size or jax.device_count()
    out = args.out and Path(args.out)
    # Several processes have all scores each: one cannot say where the others stopped.
    parts = None
    if out and jax.process_count() == 1:
        settings = {
            "model": fingerprint([params, config.model.to_json(), config.clip.to_json()]),
            "videos": fingerprint([list(videos.paths), videos.labels]),
            "views": f"{segments}x{crops}",
            "batch-size": batch_size,
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        }
        parts = Parts(out / "scores", settings)
    (begun,) = (parts and parts.position) or (0,)
    if out and not begun:
        out.mkdir(parents=True, exist_ok=True)
        (out / "unreadable.csv").unlink(missing_ok=True)
    bad = BadVideos(videos, max_share=1.0, file=out and out / "unreadable.csv")
    total = -(-len(videos) // batch_size)
    found = []
    for rows in parts.read("video", "probabilities", "frames") if parts else ():
        found.append(Predictions(rows["video"], rows["probabilities"]))
        sampler.counts.update(zip(rows["video"].tolist(), rows["frames"].tolist(), strict=True))
    if begun:
        print(f"{out / 'scores'}: {sum(len(f.ids) for f in found):,} videos were scored before")
    batches = predict_batches(
        functools.partial(view_probabilities, build_model(config)),
        params,
        videos,
        sampler=sampler,
        batch_size=batch_size,
        mesh=make_mesh(dict(data=-1, fsdp=1, tensor=1)),
        threads=config.data.threads or None,
        bad=bad,
        start_batch=begun,
    )
    progress = Progress(total, begun=begun)
    with closing(batches), stop_signals() as stop:
        for batch, predictions in enumerate(batches, begun + 1):
            found.append(predictions)
            if parts:
                frames = [sampler.counts[number] for number in predictions.ids]
                rows = {
                    "video": predictions.ids,
                    "probabilities": predictions.values,
                    "frames": np.array(frames, np.int64),
                }
                parts.add(rows, position=(batch,))
            done = min(batch * batch_size, len(videos))
            progress.show(
                batch,
                count=done - begun * batch_size,
                unit="videos",
                of=f"video {done:,} of {len(videos):,}",
            )
            if stop.received:
                break
        progress.close()
        if parts:
            parts.flush()
    if stop.received:
        print(f"{stop.received}: {stopped_line(parts)}")
        sys.exit(EXIT_STOPPED)
    found = join_views(found)
    if not len(found.ids):
        raise UserError(f"nothing to measure: {bad}")

    labels = videos.labels[found.ids]
    top1, top5 = (metrics.top(found.values, labels, k=k) for k in (1, 5))
    clip = config.clip
    frames = f"{clip.frames}x{clip.stride}" if clip.sampling == "dense" else f"{clip.frames} sparse"
    side = f"{clip.height}" if clip.height == clip.width else f"{clip.height}x{clip.width}"
    protocol = (
        f"{segments}x{crops} views, {frames} frames, {side} px, softmax mean"
        f"{', averaged weights' * args.ema}, {len(found.ids):,} of {len(videos):,} videos"
    )
    print(f"top-1 {top1}, top-5 {top5}, {protocol}")
    if len(bad):
        print(bad)
    for line in length_lines(sampler):
        print(line)
    counts = metrics.confusion(found.values, labels)
    names = tuple(config.data.class_names) or tuple(map(str, range(classes)))
    table = [
        (name, int(row.sum()), float(row[index] / row.sum()) if row.sum() else None)
        for index, (name, row) in enumerate(zip(names, counts, strict=False))
    ]
    width = max(map(len, names))
    for name, count, share in table:
        if share is not None:
            print(f"  {name:{width}}  {share:7.1%} of {count}")

    if args.json:
        result = {
            "top1": top1._asdict(),
            "top5": top5._asdict(),
            "protocol": protocol,
            "checkpoint": args.checkpoint,
            "classes": [dict(name=n, count=c, top1=s) for n, c, s in table],
            "unreadable": bad.reasons,
        }
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if out:
        write_confusion(out, counts, names)


def choose_views(given: str | None, config, videos) -> tuple[int, int]:
    """Return clips x crops: as given, else of the recipe, as far as they differ.

    Raises UserError for more than the videos allow: the same views would be averaged.
    """
    from videomae_jax.config import parse_views
    from videomae_jax.data.samplers import distinct_views
    from videomae_jax.errors import UserError
    from videomae_jax.tasks.classify import view_sampler

    segments, crops = parse_views(given or config.views)
    sampler = view_sampler(config, segments=segments, crops=crops)
    most = distinct_views(sampler, videos)
    if most == (0, 0) or most == (segments, crops):
        return segments, crops
    reasons = [
        f"{name} {wanted}, but there are only {there} different ones"
        for name, wanted, there in zip(("clips", "crops"), (segments, crops), most, strict=True)
        if there < wanted
    ]
    text = f"{' and '.join(reasons)} in videos of this length and shape"
    if given:
        raise UserError(f"--views {given}: {text}: use --views {most[0]}x{most[1]}")
    print(f"views {config.views} of the recipe: {text}; {most[0]}x{most[1]} are used")
    return most


def length_lines(sampler) -> list[str]:
    """Say how many of the videos that were read are too short for a clip, or for all of them."""
    import numpy as np

    lengths = list(sampler.counts.values())
    short = sum(count < sampler.span for count in lengths)
    same = sum(
        len(np.unique(sampler.indices(count), axis=0)) < sampler.segments for count in lengths
    )
    lines = []
    if short:
        lines.append(
            f"{short} videos are shorter than a clip of {sampler.span} frames: frames are repeated"
        )
    if same:
        lines.append(f"{same} videos are too short for {sampler.segments} different clips")
    return lines


def stopped_line(parts) -> str:
    """What a stopped command leaves."""
    if parts is None:
        return "nothing is saved without --out"
    return f"saved {parts.folder}; the same command goes on from there"


def write_confusion(out, counts, names) -> None:
    """Write confusion.csv and confusion.png; a row is a class, a column what it was taken for."""
    import csv

    from matplotlib.figure import Figure

    with open(out / "confusion.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=False))
    size = min(4 + 0.25 * len(names), 40)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 150:  # more cannot be read
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="class", title="share of each class")
    figure.savefig(out / "confusion.png", dpi=110)
