"""What is wrong with the videos of a list, and the report that shows it."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from videomae_jax.data.html import bars, charts, page, sheet, table

ENDS_EARLY = 1.0  # seconds that are missing, for a remark
ROWS = 200  # of a table in the report


def left_out(videos, surveys, copies: dict[int, int], *, min_frames: int) -> dict:
    """Return the place of each video that does not belong in a clean list -> (kind, reason)."""
    bad = {}
    for place, survey in enumerate(surveys[: len(videos)]):
        first = copies.get(place)
        if survey.reason:
            bad[place] = "unreadable", survey.reason
        elif survey.facts.frames < min_frames:
            frames = survey.facts.frames
            bad[place] = "too short", f"{frames} frame{'s' * (frames > 1)}, fewer than {min_frames}"
        elif first is not None:
            reason = f"of {videos.paths[first]}"
            if videos.labels is not None and videos.labels[place] != videos.labels[first]:
                reason += ", which has another label"
            bad[place] = "copy", reason
    return bad


def leaks(surveys, count: int, look_alikes: list[tuple[int, int]]) -> dict:
    """Return the places below `count` of videos that are also beyond it -> (kind, reason)."""
    others = {survey.digest: survey.path for survey in surveys[count:] if survey.size}
    bad = {a: ("leak", f"looks like {surveys[b].path}") for a, b in look_alikes if a < count <= b}
    for place, survey in enumerate(surveys[:count]):
        if survey.size and survey.digest in others:
            bad[place] = "leak", f"also in {others[survey.digest]}"
    return bad


def remark(surveys, look_alikes: list[tuple[int, int]]) -> list[tuple[str, str, str]]:
    """Return (path, kind, remark) of what is worth a look but no reason to leave a video out."""
    odd, uneven, early, several = [], [], [], []
    for survey in surveys:
        if survey.width % 2 or survey.height % 2:
            odd.append((survey.path, "odd size", f"{survey.width} x {survey.height}"))
        if survey.facts and not survey.facts.steady:
            rate = f"frames for unequal times, {survey.facts.rate:.4g} per second in the mean"
            uneven.append((survey.path, "uneven frame rate", rate))
        if survey.facts and survey.facts.missing > ENDS_EARLY:
            text = f"{survey.facts.missing:.1f} s before the end that its container states"
            early.append((survey.path, "ends early", text))
        if survey.facts and survey.facts.choice:
            read, *others = survey.facts.choice
            several.append(
                (survey.path, "several video streams", f"{read}; not {', '.join(others)}")
            )
    alike = [(surveys[b].path, "look-alike", f"of {surveys[a].path}") for a, b in look_alikes]
    return early + several + alike + odd + uneven


def describe(survey) -> dict:
    """Return what is known of a readable video, for JSON."""
    facts = dataclasses.asdict(survey.facts)
    sizes = dict(width=survey.width, height=survey.height, bytes=survey.size)
    return dict(path=survey.path, **sizes, **facts, digest=survey.digest)


def summarize(videos, surveys, clean, bad: dict, remarks: list) -> dict:
    """Count what was found, as words and numbers that JSON can hold.

    "frames" are the fewest, the median and the most of a video; "classes" counts clean ones.
    """
    read = [survey for survey in surveys if not survey.reason]
    seconds = [s.facts.frames / s.facts.rate for s in read if s.facts.rate]
    classes = {}
    if videos.labels is not None:
        highest = max(int(videos.labels.max()) + 1, len(videos.class_names or ()))
        names = videos.class_names or tuple(map(str, range(highest)))
        counts = Counter(clean.labels.tolist())
        classes = {name: counts[label] for label, name in enumerate(names)}
    return {
        "videos": len(videos),
        "clean": len(clean),
        "left out": dict(Counter(kind for kind, _ in bad.values()).most_common()),
        "remarks": dict(Counter(kind for _, kind, _ in remarks)),
        "hours": float(f"{sum(seconds) / 3600:.3g}"),
        "gigabytes": float(f"{sum(survey.size for survey in surveys) / 1e9:.3g}"),
        "frames": spread(s.facts.frames for s in read),
        "classes": classes,
    }


def spread(values) -> tuple[int, int, int]:
    """Return the smallest, the middle and the largest of some numbers, zeros of none."""
    values = sorted(values) or [0]
    return values[0], values[len(values) // 2], values[-1]


def report(videos, surveys, summary: dict, rows: list, remarks: list) -> str:
    """Return the page that shows it all."""
    read = [survey for survey in surveys if not survey.reason]
    sizes = Counter(f"{s.width} x {s.height}" for s in read)
    rates = Counter(f"{s.facts.rate:.3g}" if s.facts.steady else "uneven" for s in read)
    kinds = Counter(f"{s.facts.codec}, {s.facts.pixels}" for s in read)
    figures = [
        bars("seconds", histogram([s.facts.frames / s.facts.rate for s in read if s.facts.rate])),
        bars("frames", histogram([float(s.facts.frames) for s in read])),
        bars("frames per second", most(rates)),
        bars("width x height", most(sizes)),
        bars("codec and pixels", most(kinds)),
    ]
    classes = Counter(summary["classes"])
    if classes:
        shown = classes.most_common()
        if len(shown) > 60:
            figures += [bars("largest classes", shown[:30]), bars("smallest classes", shown[-30:])]
        else:
            figures.append(bars("videos per class, clean", shown))
    low, middle, high = spread(classes.values())
    lead = (
        f"{summary['clean']:,} of {summary['videos']:,} videos are clean, {summary['hours']:g} "
        f"hours and {summary['gigabytes']:g} GB in all."
    )
    if classes:
        lead += f" {len(classes)} classes of {low:,} to {high:,} videos, median {middle:,}."

    def caption(place: int) -> str:
        survey = surveys[place]
        lines = [Path(survey.path).name]
        if videos.labels is not None:
            lines.append(list(summary["classes"])[videos.labels[place]])
        facts = survey.facts
        return "\n".join([*lines, f"{survey.width}x{survey.height}, {facts.frames} frames"])

    found = [*summary["left out"].items(), *summary["remarks"].items()]
    pictures = [(s.picture, caption(place)) for place, s in enumerate(surveys) if s.picture]
    return page(
        f"Videos of {videos.name}",
        lead,
        [
            ("Found", table(("what", "videos"), found, limit=ROWS, more="")),
            ("Contact sheet", sheet(pictures)),
            ("Distributions", charts(figures) if read else ""),
            ("Left out", table(("video", "kind", "reason"), rows, limit=ROWS, more="bad.csv")),
            (
                "Worth a look, and not left out for it",
                table(("video", "kind", "remark"), remarks, limit=ROWS, more="the --json file"),
            ),
        ],
    )


def most(counts, *, limit: int = 12) -> list[tuple[str, int]]:
    """Return the most frequent (name, count), the rest as one."""
    rows = counts.most_common(limit)
    rest = counts.total() - sum(count for _, count in rows)
    return [*rows, *([("other", rest)] if rest else [])]


def histogram(values: list[float], *, bins: int = 12) -> list[tuple[str, int]]:
    """Return (range, count) of bins of equal width."""
    if len(set(values)) < 2:
        return [(f"{value:.3g}", len(values)) for value in set(values)]
    counts, edges = np.histogram(values, bins=bins)
    return [
        (f"{a:.3g} to {b:.3g}", int(count))
        for a, b, count in zip(edges, edges[1:], counts, strict=False)
    ]
