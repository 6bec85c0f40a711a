"""Write the manifests of a folder of videos, or of a public data set with its official lists.

Layouts: folders (a sub-folder per class), flat (no classes), and ucf101, hmdb51, ssv2, kinetics
(by their official lists, below DIR or in --lists). The validation split comes from the official
lists, from --val-list, or is a random --holdout fraction.

examples:
  videomae data list clips/ --out train.csv --val val.csv --holdout 0.1
  videomae data list UCF-101/ --layout ucf101 --split 1 --out train.csv --val val.csv
"""

import argparse

LAYOUTS = ("folders", "flat", "ucf101", "hmdb51", "ssv2", "kinetics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="a folder of videos, with sub-folders")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="the manifest to train on; csv"
    )
    parser.add_argument("--val", metavar="FILE", help="the manifest to validate on")
    parser.add_argument(
        "--layout", choices=("auto", *LAYOUTS), default="auto", help="(default: %(default)s)"
    )
    parser.add_argument("--lists", metavar="DIR", help="the official lists (default: below DIR)")
    parser.add_argument(
        "--split",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="of UCF101 and HMDB51 (default: %(default)s)",
    )
    parser.add_argument(
        "--holdout", type=float, metavar="SHARE", help="of folders and flat, for --val (0.1)"
    )
    parser.add_argument(
        "--val-list", metavar="FILE", help="paths below DIR, one a line, that go to --val"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --holdout (default: %(default)s)")
    parser.add_argument(
        "--classes", metavar="FILE", help="write the class names here, in the order of numbers"
    )
    parser.add_argument(
        "--numbers", action="store_true", help="write class numbers in place of names"
    )
    parser.add_argument("--json", metavar="FILE", help="write the counts here")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import json
    from pathlib import Path

    from videomae_jax.data.datasets import read_listing, to_videos
    from videomae_jax.data.manifest import write_lines, write_manifest
    from videomae_jax.errors import UserError

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
    if args.val and Path(args.val).absolute() == Path(args.out).absolute():
        raise UserError(f"--out and --val are both {args.out}: give two files")
    if args.classes and not names:
        raise UserError(f"{name} has no classes to write to {args.classes}")
    train, val = to_videos(listing.train, names, name=name), None
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
    print(f"{layout}: {len(names)} classes" if names else f"{layout}: no classes")
    for file, count in counts.items():
        print(f"  {count:9,} videos in {file}")
    if val is not None and not args.val:
        print(f"  {len(val):9,} of validation not written: give --val FILE")
    if listing.unlisted:
        print(f"  {listing.unlisted:9,} videos in {args.folder} are in no list")
    missing = Path(args.out).with_suffix(".missing.txt")
    if listing.missing:
        write_lines(missing, listing.missing)
        print(f"  {len(listing.missing):9,} listed videos are missing: {missing}")
    else:
        missing.unlink(missing_ok=True)  # of an earlier call
    if args.json:
        result = dict(
            layout=layout,
            classes=len(names),
            videos=counts,
            missing=listing.missing,
            unlisted=listing.unlisted,
        )
        write_lines(args.json, [json.dumps(result, indent=1, ensure_ascii=False)])


def split(videos, args: argparse.Namespace):
    """Divide videos into (training, validation) by --val-list, else by --holdout and --seed."""
    import os
    from pathlib import Path

    from videomae_jax.data.videos import pick_videos, split_videos
    from videomae_jax.errors import UserError

    if not args.val_list:
        holdout = 0.1 if args.holdout is None else args.holdout
        return split_videos(videos, holdout=holdout, seed=args.seed)
    if args.holdout is not None:
        raise UserError("--holdout and --val-list are two ways to one list: use one")
    try:
        lines = Path(args.val_list).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {args.val_list}: {error.strerror}") from None
    folder = os.path.abspath(os.path.expanduser(args.folder))
    given = {os.path.normpath(os.path.join(folder, line.strip())) for line in lines if line.strip()}
    unknown = sorted(given - set(videos.paths))
    if unknown:
        raise UserError(
            f"{args.val_list} lists {len(unknown)} videos that are not in {args.folder}, "
            f"first {unknown[0]}"
        )
    sides: tuple[list[int], list[int]] = ([], [])
    for index, path in enumerate(videos.paths):
        sides[path in given].append(index)
    return tuple(pick_videos(videos, side) for side in sides)
