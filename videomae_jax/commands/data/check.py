"""Check every video of a list: unreadable, short, copied, or in both splits.

A few frames of each video are decoded, on all cores. Writes clean.csv (the videos to train on),
bad.csv (the videos left out, with the reason) and report.html.

examples:
  videomae data check train.csv
  videomae data check train.csv --against val.csv --json check.json
"""

import argparse

PICTURES = 48  # of the contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", help="a list or a folder of videos")
    parser.add_argument(
        "--against", metavar="OTHER", help="another split: none of its videos may be in MANIFEST"
    )
    parser.add_argument("--out", metavar="DIR", help="(default: MANIFEST_check, beside it)")
    parser.add_argument(
        "--min-frames",
        type=int,
        default=16,
        metavar="N",
        help="shorter videos are left out; 1 keeps all (default: %(default)s, those of a clip)",
    )
    parser.add_argument("--json", metavar="FILE", help="write what was found here")


def main(args: argparse.Namespace) -> None:
    import csv
    import io
    import json
    from pathlib import Path

    from videomae_jax.data.manifest import write_lines, write_manifest
    from videomae_jax.data.quality import describe, leaks, left_out, remark, report, summarize
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.survey import find_copies, find_look_alikes, survey_videos
    from videomae_jax.data.videos import pick_videos
    from videomae_jax.errors import UserError
    from videomae_jax.progress import Progress

    source = Path(args.manifest).expanduser().absolute()
    out = Path(args.out) if args.out else source.with_name(f"{source.stem}_check")
    videos = read_videos(source)
    other = read_videos(args.against) if args.against else None
    try:  # now, not after hours
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out} ({error.strerror}): give --out") from None
    count = len(videos)
    paths = [*videos.paths, *(other.paths if other else ())]
    shown = set(range(0, count, -(-count // PICTURES)))
    surveys, unreadable, progress = [], 0, Progress(len(paths))
    for survey in survey_videos(paths, pictures=[place in shown for place in range(len(paths))]):
        surveys.append(survey)
        unreadable += bool(survey.reason)
        done = len(surveys)
        of = f"video {done:,} of {len(paths):,}, {unreadable:,} unreadable"
        progress.show(done, count=done, unit="videos", of=of)
    progress.close()

    copies, look_alikes = find_copies(surveys), find_look_alikes(surveys)
    bad = left_out(videos, surveys, copies, min_frames=args.min_frames)
    if other:
        bad = leaks(surveys, count, look_alikes) | bad
    clean = pick_videos(videos, [place for place in range(count) if place not in bad])
    write_manifest(clean, out / "clean.csv")
    rows = [(videos.paths[place], *bad[place]) for place in sorted(bad)]
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
    if args.json:
        result = dict(
            manifest=str(source),
            against=args.against,
            summary=summary,
            bad=[dict(path=path, kind=kind, reason=reason) for path, kind, reason in rows],
            remarks=[dict(path=path, kind=kind, remark=text) for path, kind, text in remarks],
            files=[describe(survey) for survey in surveys if not survey.reason],
        )
        write_lines(args.json, [json.dumps(result, indent=1, ensure_ascii=False)])

    print(f"{len(clean):,} of {count:,} videos are clean: {out / 'clean.csv'}")
    for kind, number in summary["left out"].items():
        print(f"  {number:9,} {kind}")
    for kind, number in summary["remarks"].items():
        print(f"  {number:9,} {kind} (not left out for it)")
    if rows:
        print(f"reasons: {out / 'bad.csv'}")
    if unread:
        print(f"  {len(unread):9,} unreadable in {args.against}:")
        for survey in unread[:5]:
            print(f"{'':12}{survey.path} ({survey.reason})")
    print(f"report: {out / 'report.html'}")
    if not len(clean):
        raise UserError(f"none of {count:,} videos is clean: see {out / 'bad.csv'}")
