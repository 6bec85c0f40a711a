"""Write the list of the videos in a folder, or of a public data set; or count annotations.

Layouts are folders (one folder for each class), flat (no classes), and ucf101, hmdb51, ssv2 and
kinetics, which need their official lists. The validation split comes from the official lists or
from --val-list, or it is a random fraction, --holdout.

Of an annotation file of action detection it says what is in it: videos, key frames, boxes and the
labels of each class, and what is wrong with them.

examples:
  videomae data list clips/ --out train.csv --val val.csv --holdout 0.1
  videomae data list UCF-101/ --layout ucf101 --split 1 --out train.csv --val val.csv
  videomae data list ava_val_v2.2.csv --videos movies/ --class-list ava_action_list_v2.2.pbtxt
"""

import argparse
from typing import TYPE_CHECKING

from videomae_jax.commands import options

if TYPE_CHECKING:
    from pathlib import Path

    from videomae_jax.data.videos import Videos

LAYOUTS = ("folders", "flat", "ucf101", "hmdb51", "ssv2", "kinetics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "folder",
        metavar="DIR",
        help="a folder of videos, searched with all its sub-folders, or an annotation file",
    )
    parser.add_argument("--out", metavar="FILE", help="write the training list to this .csv file")
    parser.add_argument("--val", metavar="FILE", help="write the validation list to this .csv file")
    parser.add_argument(
        "--layout",
        choices=("auto", *LAYOUTS),
        default="auto",
        help="how DIR is organized; auto looks at its content (default: %(default)s)",
    )
    parser.add_argument(
        "--lists", metavar="DIR", help="folder of the official lists (default: inside DIR)"
    )
    parser.add_argument(
        "--split",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="official split of UCF101 or HMDB51 (default: %(default)s)",
    )
    parser.add_argument(
        "--holdout",
        type=float,
        metavar="X",
        help="fraction of the videos for --val, without official lists (default: 0.1)",
    )
    parser.add_argument(
        "--val-list",
        metavar="FILE",
        help="file of the videos for --val, one path inside DIR on each line",
    )
    parser.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        metavar="N",
        help="random seed of --holdout (default: %(default)s)",
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="write the class names to this file, in label order"
    )
    parser.add_argument(
        "--numbers", action="store_true", help="write labels as numbers instead of class names"
    )
    options.add_annotations(parser)
    options.add_json(parser, of="the counts")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from pathlib import Path

    from videomae_jax.data.datasets import read_listing, to_videos
    from videomae_jax.data.manifest import write_manifest
    from videomae_jax.data.sources import describe_skipped, nearest_path
    from videomae_jax.data.text_files import write_lines
    from videomae_jax.errors import UserError
    from videomae_jax.paths import as_path, exists, full_path, is_folder, remove

    source = full_path(args.folder) if "://" in args.folder else Path(args.folder).expanduser()
    if not is_folder(source) and exists(source):
        count_boxes(args, source)
        return
    if not is_folder(source):
        raise UserError(f"no such folder or annotation file: {source}{nearest_path(source)}")
    if not args.out:
        raise UserError("give --out FILE.csv, the training list to write: see data list --help")
    listing, layout = read_listing(
        args.folder, layout=args.layout, lists=args.lists, split=args.split
    )
    name = f"{args.folder} ({layout})"
    names = listing.class_names
    official = layout not in ("folders", "flat")
    if official and (args.holdout is not None or args.val_list):
        raise UserError(f"{layout} has official lists: leave out --holdout and --val-list")
    if (args.holdout is not None or args.val_list) and not args.val:
        raise UserError("--holdout and --val-list need --val FILE")
    if args.val and full_path(args.val) == full_path(args.out):
        raise UserError(f"--out and --val are both {args.out}: give two files")
    if args.classes and not names:
        raise UserError(f"{name} has no classes to write to {args.classes}")
    train = to_videos(listing.train, names, name=name)
    val = None
    if official:
        val = to_videos(listing.val, names, name=name)
    elif args.val:
        train, val = split(train, args)

    counts = {args.out: len(train)}
    write_manifest(train, args.out, numbers=args.numbers)
    if args.val and val is not None:
        write_manifest(val, args.val, numbers=args.numbers)
        counts[args.val] = len(val)
    if args.classes:
        write_lines(args.classes, names)
    classes = len(names) or (0 if train.labels is None else len(set(train.labels.tolist())))
    print(f"{layout}: {classes} classes" if classes else f"{layout}: no classes")
    for file, count in counts.items():
        print(f"  {count:9,} videos in {file}")
    if val is not None and not args.val:
        print(f"  {len(val):9,} of validation not written: give --val FILE")
    if listing.skipped:
        print(f"  {describe_skipped(listing.skipped)}")
    if listing.unlisted:
        print(f"  {listing.unlisted:9,} videos in {args.folder} are in no list")
    missing = as_path(args.out).with_suffix(".missing.txt")
    if listing.missing:
        write_lines(missing, listing.missing)
        print(f"  {len(listing.missing):9,} listed videos are missing: {missing}")
    else:
        remove(missing)  # of an earlier call
    result = dict(
        layout=layout,
        classes=classes,
        videos=counts,
        missing=listing.missing,
        unlisted=listing.unlisted,
    )
    options.write_json(args.json, result)


def count_boxes(args: argparse.Namespace, source: "Path") -> None:
    """Print what is in an annotation file."""
    from videomae_jax.data.box_files import is_box_file
    from videomae_jax.data.box_report import summarize_boxes, text
    from videomae_jax.errors import UserError

    if not is_box_file(source):
        raise UserError(
            f"{source} is neither a folder nor an annotation file with boxes; check a list of "
            "videos with `videomae data check`"
        )
    summary = summarize_boxes(options.read_annotations(args, source))
    print(f"{source}\n{text(summary)}")
    options.write_json(args.json, summary)


def split(videos: "Videos", args: argparse.Namespace) -> "tuple[Videos, Videos]":
    """Split videos into (training, validation) by --val-list, or by --holdout and --seed."""
    import os

    from videomae_jax.data.text_files import read_text, split_lines
    from videomae_jax.data.videos import pick_videos, split_videos
    from videomae_jax.errors import UserError
    from videomae_jax.paths import full_path, is_remote, join

    if not args.val_list:
        holdout = 0.1 if args.holdout is None else args.holdout
        return split_videos(videos, holdout=holdout, seed=args.seed)
    if args.holdout is not None:
        raise UserError("--holdout and --val-list both choose the validation videos: use one")
    lines = split_lines(read_text(full_path(args.val_list), strict=False))
    folder = full_path(args.folder)

    def plain(path: str) -> str:
        return path if is_remote(path) else os.path.normpath(path)

    given = {plain(join(folder, line.strip())) for line in lines if line.strip()}
    paths = list(map(plain, videos.paths))
    unknown = sorted(given - set(paths))
    if unknown:
        raise UserError(
            f"{args.val_list} lists {len(unknown)} videos that are not in {args.folder}, "
            f"first {unknown[0]}"
        )
    train = [index for index, path in enumerate(paths) if path not in given]
    val = [index for index, path in enumerate(paths) if path in given]
    return pick_videos(videos, train), pick_videos(videos, val)
