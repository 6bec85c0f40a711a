"""Faults of the videos of a list, and the report about them."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from videomae_jax.data.html import bars, charts, page, sheet, table
from videomae_jax.data.survey import Survey
from videomae_jax.data.videos import Videos, list_labels, used_labels

NOT_SQUARE = 0.02  # of the aspect of a pixel, for a remark; encoders round sizes to even ones
ENDS_EARLY = 1.0  # missing seconds from which on a video gets a remark
ROWS = 200  # the most rows of a table in the report

Reasons = dict[int, tuple[str, str]]  # index of a video -> (kind, reason)


def left_out(
    videos: Videos, surveys: Sequence[Survey], copies: dict[int, int], *, min_frames: int
) -> Reasons:
    """Return the videos that do not belong in a clean list.

    surveys: of all videos, and of others after them. copies: see `survey.find_copies`.
    """
    bad = {}
    for index, survey in enumerate(surveys[: len(videos)]):
        first = copies.get(index)
        if survey.facts is None:
            bad[index] = "unreadable", survey.reason
        elif survey.facts.frames < min_frames:
            count = survey.facts.frames
            frames = "1 frame" if count == 1 else f"{count} frames"
            bad[index] = "too short", f"{frames}, fewer than {min_frames}"
        elif first is not None:
            reason = f"of {videos.paths[first]}"
            if videos.labels is not None and np.any(videos.labels[index] != videos.labels[first]):
                reason += ", which has another label"
            bad[index] = "copy", reason
    return bad


def leaks(surveys: Sequence[Survey], count: int, look_alikes: list[tuple[int, int]]) -> Reasons:
    """Return which of the first `count` videos are also among the others."""
    others = {survey.digest: survey.path for survey in surveys[count:] if survey.size}
    bad = {a: ("leak", f"looks like {surveys[b].path}") for a, b in look_alikes if a < count <= b}
    for index, survey in enumerate(surveys[:count]):
        if survey.size and survey.digest in others:
            bad[index] = "leak", f"also in {others[survey.digest]}"
    return bad


def remark(
    surveys: Sequence[Survey], look_alikes: list[tuple[int, int]]
) -> list[tuple[str, str, str]]:
    """Return (path, kind, remark) of videos that are unusual, but not left out for it."""
    odd, uneven, early, several, stretched = [], [], [], [], []
    for survey in surveys:
        if survey.width % 2 or survey.height % 2:
            odd.append((survey.path, "odd size", f"{survey.width} x {survey.height}"))
        if survey.facts and not survey.facts.steady:
            rate = f"frames for unequal times, {survey.facts.rate:.4g} per second in the mean"
            uneven.append((survey.path, "uneven frame rate", rate))
        if survey.facts and survey.facts.missing > ENDS_EARLY:
            text = f"{survey.facts.missing:.1f} s before the end that its container states"
            early.append((survey.path, "ends early", text))
        if survey.facts and abs(survey.facts.pixel_aspect - 1) > NOT_SQUARE:
            text = f"width {survey.facts.pixel_aspect:.4g} of the height; read as stored"
            stretched.append((survey.path, "pixels not square", text))
        if survey.facts and survey.facts.choice:
            read, *others = survey.facts.choice
            several.append(
                (survey.path, "several video streams", f"{read}; not {', '.join(others)}")
            )
    alike = [(surveys[b].path, "look-alike", f"of {surveys[a].path}") for a, b in look_alikes]
    return early + several + alike + odd + uneven + stretched


def describe(survey: Survey) -> dict:
    """Return the facts about a readable video, for JSON."""
    assert survey.facts is not None
    facts = dataclasses.asdict(survey.facts)
    sizes = dict(width=survey.width, height=survey.height, bytes=survey.size)
    return dict(path=survey.path, **sizes, **facts, digest=survey.digest)


def summarize(
    videos: Videos, surveys: Sequence[Survey], clean: Videos, bad: Reasons, remarks: list
) -> dict:
    """Return the counts of a report, for JSON.

    "frames" are the smallest, the median and the largest number of a video; "classes" counts
    clean videos.
    """
    facts = [survey.facts for survey in surveys if survey.facts]
    seconds = [fact.frames / fact.rate for fact in facts if fact.rate]
    classes = {}
    if videos.labels is not None and clean.labels is not None:
        highest = max(int(used_labels(videos).max(initial=-1)) + 1, len(videos.class_names or ()))
        names = videos.class_names or tuple(map(str, range(highest)))
        counts = Counter(label for labels in list_labels(clean) for label in labels)
        classes = {name: counts[label] for label, name in enumerate(names)}
    return {
        "videos": len(videos),
        "clean": len(clean),
        "left out": dict(Counter(kind for kind, _ in bad.values()).most_common()),
        "remarks": dict(Counter(kind for _, kind, _ in remarks)),
        "hours": float(f"{sum(seconds) / 3600:.3g}"),
        "gigabytes": float(f"{sum(survey.size for survey in surveys) / 1e9:.3g}"),
        "frames": spread(fact.frames for fact in facts),
        "classes": classes,
    }


def spread(values: Iterable[int]) -> tuple[int, int, int]:
    """Return the smallest, the median and the largest of some numbers, zeros if there are none."""
    ordered = sorted(values) or [0]
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def report(
    videos: Videos,
    surveys: Sequence[Survey],
    summary: dict,
    rows: Sequence[Sequence],
    remarks: Sequence[Sequence],
) -> str:
    """Return an HTML page with all results.

    summary: see `summarize`. rows: (path, kind, reason) of the videos that are left out.
    remarks: see `remark`.
    """
    classes = Counter(summary["classes"])
    low, middle, high = spread(classes.values())
    lead = (
        f"{summary['clean']:,} of {summary['videos']:,} videos are clean, {summary['hours']:g} "
        f"hours and {summary['gigabytes']:g} GB in all."
    )
    if classes:
        lead += f" {len(classes)} classes of {low:,} to {high:,} videos, median {middle:,}."

    pictures = []
    names = list(summary["classes"])
    labels = [] if videos.labels is None else list_labels(videos)
    for index, survey in enumerate(surveys):
        if survey.picture and survey.facts:
            lines = [Path(survey.path).name]
            if labels:
                lines.append(", ".join(names[label] for label in labels[index]) or "no class")
            lines.append(f"{survey.width}x{survey.height}, {survey.facts.frames} frames")
            pictures.append((survey.picture, "\n".join(lines)))
    found = [*summary["left out"].items(), *summary["remarks"].items()]
    return page(
        f"Videos of {videos.name}",
        lead,
        [
            ("Found", table(("what", "videos"), found, limit=ROWS, more="")),
            ("Contact sheet", sheet(pictures)),
            ("Distributions", _distributions(surveys, classes)),
            ("Left out", table(("video", "kind", "reason"), rows, limit=ROWS, more="bad.csv")),
            (
                "Worth a look, and not left out for it",
                table(("video", "kind", "remark"), remarks, limit=ROWS, more="the --json file"),
            ),
        ],
    )


def _distributions(surveys: Sequence[Survey], classes: Counter[str]) -> str:
    """Return the charts of readable videos, and of clean ones per class."""
    facts = [survey.facts for survey in surveys if survey.facts]
    if not facts:
        return ""
    seconds = [fact.frames / fact.rate for fact in facts if fact.rate]
    rates = Counter(f"{fact.rate:.3g}" if fact.steady else "uneven" for fact in facts)
    sizes = Counter(f"{survey.width} x {survey.height}" for survey in surveys if survey.facts)
    codecs = Counter(f"{fact.codec}, {fact.pixels}" for fact in facts)
    figures = [
        bars("seconds", histogram(seconds)),
        bars("frames", histogram([float(fact.frames) for fact in facts])),
        bars("frames per second", most(rates)),
        bars("width x height", most(sizes)),
        bars("codec and pixels", most(codecs)),
    ]
    shown = classes.most_common()
    if len(shown) > 60:
        figures += [bars("largest classes", shown[:30]), bars("smallest classes", shown[-30:])]
    elif shown:
        figures.append(bars("videos per class, clean", shown))
    return charts(figures)


def most(counts: Counter[str], *, limit: int = 12) -> list[tuple[str, int]]:
    """Return the most frequent (name, count), and the others together."""
    rows = counts.most_common(limit)
    rest = counts.total() - sum(count for _, count in rows)
    if rest:
        rows.append(("other", rest))
    return rows


def histogram(values: list[float], *, bins: int = 12) -> list[tuple[str, int]]:
    """Return (range, count) of bins of equal width."""
    if len(set(values)) < 2:
        return [(f"{value:.3g}", len(values)) for value in set(values)]
    counts, edges = np.histogram(values, bins=bins)
    return [
        (f"{a:.3g} to {b:.3g}", int(count))
        for a, b, count in zip(edges, edges[1:], counts, strict=False)
    ]
