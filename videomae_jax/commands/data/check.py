"""Check every video of a list: is it unreadable, short, a copy, or in both splits?

Decodes a few frames of each video, on all cores. Writes clean.csv (the videos to train on),
bad.csv (the videos left out, with the reason) and report.html.

Of an annotation file of action detection it draws the boxes and the actions on key frames from all
over the file, in report.html and boxes.png: look whether they are around the persons. Boxes at
another moment need --start, boxes across persons have other axes.

examples:
  videomae data check train.csv
  videomae data check train.csv --against val.csv --json check.json
  videomae data check ava_val_v2.2.csv --videos movies/ --class-list ava_action_list_v2.2.pbtxt
"""

import argparse
from typing import TYPE_CHECKING

from videomae_jax.commands import options

if TYPE_CHECKING:
    from pathlib import Path

    from videomae_jax.data.survey import Survey

IMAGES = 48  # in the contact sheet of the report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "manifest", metavar="VIDEOS", help="a list or a folder of videos, or an annotation file"
    )
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="another split; videos that are also in it are left out",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the results (default: VIDEOS_check, beside VIDEOS)",
    )
    parser.add_argument(
        "--min-frames",
        type=int,
        default=16,
        metavar="N",
        help="leave out videos with fewer frames; 1 keeps all (default: %(default)s, one clip)",
    )
    options.add_annotations(parser)
    options.add_json(parser, of="the findings")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import csv
    import io

    from videomae_jax.data.box_files import is_box_file
    from videomae_jax.data.manifest import write_manifest
    from videomae_jax.data.quality import describe, leaks, left_out, remark, report, summarize
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.survey import find_copies, find_look_alikes
    from videomae_jax.data.text_files import write_lines
    from videomae_jax.data.videos import check_are_files, pick_videos
    from videomae_jax.errors import UserError
    from videomae_jax.paths import as_path, exists, full_path, is_folder

    source = full_path(args.manifest)
    out = as_path(args.out) if args.out else source.with_name(f"{source.stem}_check")
    if not is_folder(source) and exists(source) and is_box_file(source):
        check_boxes(args, source, out)
        return
    videos = read_videos(source)
    other = read_videos(args.against) if args.against else None
    check_are_files(videos)
    if other:
        check_are_files(other)
    _make_folder(out)  # before the survey, which may take hours
    count = len(videos)
    paths = [*videos.paths, *(other.paths if other else ())]
    shown = set(range(0, count, -(-count // IMAGES)))
    surveys = _survey(paths, shown)
    copies, look_alikes = find_copies(surveys), find_look_alikes(surveys)
    bad = left_out(videos, surveys, copies, min_frames=args.min_frames)
    if other:
        bad = leaks(surveys, count, look_alikes) | bad
    clean = pick_videos(videos, [index for index in range(count) if index not in bad])
    write_manifest(clean, out / "clean.csv")
    rows = [(videos.paths[index], *bad[index]) for index in sorted(bad)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "kind", "reason"), *rows])
    write_lines(out / "bad.csv", [text.getvalue().rstrip("\n")])
    surveys, others = surveys[:count], surveys[count:]
    remarks = remark(surveys, [pair for pair in look_alikes if max(pair) < count])
    summary = summarize(videos, surveys, clean, bad, remarks)
    unread = [survey for survey in others if survey.reason]
    if other:
        summary["unreadable in the other split"] = len(unread)
    write_lines(out / "report.html", [report(videos, surveys, summary, rows, remarks)])
    result = dict(
        manifest=str(source),
        against=args.against,
        summary=summary,
        bad=[dict(path=path, kind=kind, reason=reason) for path, kind, reason in rows],
        remarks=[dict(path=path, kind=kind, remark=text) for path, kind, text in remarks],
        files=[describe(survey) for survey in surveys if not survey.reason],
    )
    options.write_json(args.json, result)

    print(f"{len(clean):,} of {count:,} videos are clean: {out / 'clean.csv'}")
    for kind, number in summary["left out"].items():
        print(f"  {number:9,} {kind}")
    for kind, number in summary["remarks"].items():
        print(f"  {number:9,} {kind} (reported, not left out)")
    if rows:
        print(f"reasons: {out / 'bad.csv'}")
    if unread:
        print(f"  {len(unread):9,} unreadable in {args.against}:")
        for survey in unread[:5]:
            print(f"{'':12}{survey.path} ({survey.reason})")
    print(f"report: {out / 'report.html'}")
    if not len(clean):
        raise UserError(f"none of {count:,} videos is clean: see {out / 'bad.csv'}")


def check_boxes(args: argparse.Namespace, source: "Path", out: "Path") -> None:
    """Count annotations, and draw key frames."""
    from html import escape

    from videomae_jax.data.box_pictures import draw_key_frames, make_sheet
    from videomae_jax.data.box_report import summarize_boxes, text
    from videomae_jax.data.encode import encode_jpegs
    from videomae_jax.data.html import bars, charts, page, sheet, table
    from videomae_jax.data.text_files import write_lines
    from videomae_jax.errors import UserError
    from videomae_jax.host import count_cores
    from videomae_jax.paths import to_write, writing
    from videomae_jax.progress import Progress

    if args.against:
        raise UserError(f"--against compares videos, {source} lists boxes: leave it out")
    _make_folder(out)
    videos = options.read_annotations(args, source)
    assert videos.key_frames is not None
    boxed = [index for index, count in enumerate(videos.key_frames.counts) if count]
    shown = boxed[:: -(-len(boxed) // IMAGES)] if boxed else []
    progress = Progress(len(shown))

    def report(done: int) -> None:
        progress.show(done, count=done, unit="key frames", of=f"{done} of {len(shown)}")

    pictures = draw_key_frames(videos, shown, threads=count_cores(), report=report)
    progress.close()
    summary = summarize_boxes(videos)
    unread = [(p.caption, p.reason) for p in pictures if p.image is None]
    read = [(p.image, p.caption) for p in pictures if p.image is not None]
    images = [(encode_jpegs(image[None], quality=85)[0], caption) for image, caption in read]
    sections = [
        ("Key frames", sheet(images, large=True)),
        ("Found", "".join(f"<p>{line}</p>" for line in map(escape, summary["notes"]))),
        ("Labels", charts([bars("of each class", list(summary["classes"].items()))])),
        ("Unreadable", table(("key frame", "reason"), unread, limit=IMAGES, more="")),
    ]
    lead = (
        f"{summary['boxes']:,} boxes with {summary['labels']:,} labels in "
        f"{summary['key_frames']:,} key frames of {summary['videos']:,} videos."
    )
    write_lines(out / "report.html", [page(f"Boxes of {source}", lead, sections)])
    print(f"{source}\n{text(summary)}")
    for caption, reason in unread[:5]:
        print(f"unreadable: {caption} ({reason})")
    if not shown:
        raise UserError(f"{source} has no boxes to draw")
    if not images:
        raise UserError(f"none of {len(shown)} key frames could be read")
    with writing(out / "boxes.png"), to_write(out / "boxes.png") as file:
        make_sheet(pictures).save(file)
    print(f"{len(images)} key frames with their boxes: {out / 'boxes.png'}, {out / 'report.html'}")
    options.write_json(args.json, summary | {"pictures": len(images), "unread": unread})


def _make_folder(out: "Path") -> None:
    from videomae_jax.errors import UserError
    from videomae_jax.paths import make_folder

    try:
        make_folder(out)
    except OSError as error:
        raise UserError(f"cannot make the folder {out} ({error.strerror}): give --out") from None


def _survey(paths: list[str], shown: set[int]) -> "list[Survey]":
    """Survey all videos and show the progress. shown: those that keep an image."""
    from videomae_jax.data.survey import survey_videos
    from videomae_jax.progress import Progress

    surveys: list[Survey] = []
    unreadable = 0
    progress = Progress(len(paths))
    for survey in survey_videos(paths, pictures=[index in shown for index in range(len(paths))]):
        surveys.append(survey)
        unreadable += bool(survey.reason)
        done = len(surveys)
        of = f"video {done:,} of {len(paths):,}, {unreadable:,} unreadable"
        progress.show(done, count=done, unit="videos", of=of)
    progress.close()
    return surveys
