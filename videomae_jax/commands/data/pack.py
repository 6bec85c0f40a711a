"""Write videos as records that are faster to read.

A record is a short re-encoded clip or, with --format original, an unchanged file.

Train on OUT instead of VIDEOS. The same command resumes where it was stopped. To share the work,
start N processes, each with its --process-index and with --process-count N; the last one to finish
writes the index.

examples:
  videomae data pack train.csv packed/train
  videomae data pack train.csv packed/train --format jpeg --short-side 128
  videomae data pack train.csv gs://bucket/train --process-index 0 --process-count 4
"""

import argparse

from videomae_jax.commands import options
from videomae_jax.host import count_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "videos", metavar="VIDEOS", help="a list or a folder of videos, or an annotation file"
    )
    parser.add_argument(
        "out", metavar="OUT", help="a folder, made if missing, on a disk or in a bucket"
    )
    parser.add_argument(
        "--format",
        default="mp4",
        metavar="FORMAT",
        help="mp4: a key frame every 16 frames; jpeg: one image for each frame; original: the "
        "unchanged files (default: %(default)s)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="N",
        help="shrink the short side of frames to N pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--clip-frames",
        type=int,
        default=96,
        metavar="N",
        help="most frames in a record; longer videos become several records (default: %(default)s)",
    )
    parser.add_argument(
        "--quality",
        type=int,
        metavar="N",
        help="quality of jpeg, 1 to 95 (default: 85), or rate factor of mp4, 0 to 51 (default: 21)",
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=0,
        metavar="N",
        help="number of files to write (default: one per 128 videos)",
    )
    parser.add_argument(
        "--process-index",
        type=int,
        default=0,
        metavar="I",
        help="number of this process, 0 to N - 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--process-count",
        type=int,
        default=1,
        metavar="N",
        help="number of processes that share VIDEOS (default: %(default)s)",
    )
    options.add_threads(parser, of="encoders")
    parser.add_argument(
        "--verify", action="store_true", help="check all files already written, repair damaged ones"
    )
    options.add_annotations(parser).add_argument(
        "--around",
        type=float,
        default=1.5,
        metavar="SECONDS",
        help="store this much of the video on both sides of each key frame; not with --format "
        "original (default: %(default)s, a clip of 16 x 4 frames at 25 a second needs 1.24)",
    )
    options.add_json(parser, of="the counts")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import os

    from absl import logging

    from videomae_jax.data.box_files import is_box_file
    from videomae_jax.data.pack import Settings, pack
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.videos import check_are_files
    from videomae_jax.errors import UserError
    from videomae_jax.paths import exists, full_path, is_folder, is_remote
    from videomae_jax.progress import Progress

    logging.set_verbosity(logging.ERROR)  # else tensorflow-datasets warns about its own calls
    if not 0 <= args.process_index < args.process_count:
        raise UserError(
            f"--process-index {args.process_index} of --process-count {args.process_count}: use "
            f"0 to {args.process_count - 1}"
        )
    if not args.around > 0:
        raise UserError(f"--around {args.around:g}: use above 0, such as 1.5")
    source = full_path(args.videos)
    if not is_folder(source) and exists(source) and is_box_file(source):
        videos = options.read_annotations(args, source)
    else:
        videos = read_videos(args.videos)
    check_are_files(videos)
    films = videos.paths
    if videos.key_frames is not None:
        films = tuple(dict.fromkeys(videos.paths))
        print(*videos.notes, sep="\n")
    mine = len(films) // args.process_count
    progress = Progress(mine)

    def report(done: int) -> None:
        progress.show(done, count=done, unit="videos", of=f"video {done:,} of about {mine:,}")

    quality = args.quality
    if quality is None:
        quality = 21 if args.format == "mp4" else 85
    index = pack(
        videos,
        args.out.rstrip("/"),
        settings=Settings(args.format, args.short_side, args.clip_frames, quality),
        shards=args.shards,
        process_index=args.process_index,
        process_count=args.process_count,
        verify=args.verify,
        threads=args.threads or count_cores(),
        report=report,
        around=args.around,
    )
    progress.close()
    if index is None:
        print("this process is done; shards of others are missing: the last one writes the index")
        return
    counts = {key: index[key] for key in ("videos", "unreadable", "records", "frames", "bytes")}
    if videos.key_frames is not None:
        counts |= {"key_frames": len(videos), "boxes": len(videos.key_frames.boxes)}
        print(f"{counts['key_frames']:,} key frames with {counts['boxes']:,} boxes")
    counts |= {"shards": len(index["shards"])}
    compared = ""
    if not any(map(is_remote, films)):  # a bucket would be asked for each of them
        sources = sum(os.path.getsize(path) for path in films if os.path.isfile(path))
        counts |= {"source_bytes": sources}
        compared = f", {counts['bytes'] / max(sources, 1):.2f} x the {sources:,} of the source"
    print(
        f"{counts['videos'] - counts['unreadable']:,} of {counts['videos']:,} videos, "
        f"{counts['frames']:,} frames, in {counts['records']:,} records of {counts['shards']:,} "
        f"files: {counts['bytes']:,} bytes{compared}"
    )
    if counts["unreadable"]:
        print(f"{counts['unreadable']:,} unreadable; training lists them with their reasons")
    print(f"train on it with --config.data.train={args.out}")
    options.write_json(args.json, counts)
