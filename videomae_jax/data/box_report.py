"""Count the content of an annotation file, for people and for JSON."""

from typing import Any

import numpy as np

from videomae_jax.data.annotations import SLACK
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.probing import read_durations
from videomae_jax.data.videos import Videos
from videomae_jax.paths import exists


def summarize_boxes(videos: Videos) -> dict[str, Any]:
    """Return the counts of key frames. "beyond" are those outside of the time of their video.

    Opens every video for its duration. "boxes_a_key_frame" is (mean, maximum); "notes" says what
    was decided and left out when the file was read.
    """
    frames = videos.key_frames
    assert frames is not None
    films = set(videos.paths)
    durations = read_durations(films)
    ends = np.array([durations.get(path, np.inf) for path in videos.paths]) + SLACK
    beyond = np.flatnonzero((frames.seconds < 0) | (frames.seconds > ends)).tolist()
    labels = frames.targets.sum(axis=0).tolist()
    tall = frames.boxes[:, 3] - frames.boxes[:, 1]
    wide = frames.boxes[:, 2] - frames.boxes[:, 0]
    return {
        "videos": len(films),
        "missing": sorted(path for path in films if path not in durations and not exists(path)),
        "key_frames": len(frames),
        "empty": int((frames.counts == 0).sum()),
        "beyond": len(beyond),
        "first_beyond": _describe(videos, beyond[0], ends[beyond[0]]) if beyond else "",
        "boxes": len(frames.boxes),
        "boxes_a_key_frame": (round(len(frames.boxes) / max(1, len(frames)), 3), frames.most),
        "height_of_boxes": round(float(np.median(tall)), 3) if len(tall) else 0.0,
        "width_of_boxes": round(float(np.median(wide)), 3) if len(wide) else 0.0,
        "labels": int(sum(labels)),
        "without_label": int((~frames.targets.any(axis=1)).sum()),
        "persons": len(_find_persons(frames)),
        "classes": dict(zip(videos.class_names or (), labels, strict=True)),
        "notes": list(videos.notes),
    }


def _find_persons(frames: KeyFrames) -> set[tuple[str, int]]:
    """Return the different (video, person) of the boxes whose person is known."""
    names = np.repeat(np.array(frames.names, object), frames.counts).tolist()
    persons = zip(names, frames.persons.tolist(), strict=True)
    return {(name, person) for name, person in persons if person >= 0}


def _describe(videos: Videos, index: int, end: float) -> str:
    frames = videos.key_frames
    assert frames is not None
    return (
        f"second {frames.seconds[index]:g} of {videos.paths[index]}, which has {end - SLACK:.1f} s"
    )


def text(summary: dict[str, Any]) -> str:
    """Return the result of `summarize_boxes` as text."""
    mean, most = summary["boxes_a_key_frame"]
    boxes, labels = summary["boxes"], summary["labels"]
    missing = f", {len(summary['missing']):,} missing" if summary["missing"] else ""
    beyond = f", {summary['beyond']:,} beyond the end" if summary["beyond"] else ""
    rows = [
        (summary["videos"], f"videos{missing}"),
        (summary["key_frames"], f"key frames, {summary['empty']:,} without boxes{beyond}"),
        (
            boxes,
            f"boxes, {mean:.3g} a key frame, at most {most}; median width "
            f"{summary['width_of_boxes']:.2g} and height {summary['height_of_boxes']:.2g} of the "
            "image",
        ),
        (
            labels,
            f"labels, {labels / max(1, boxes):.3g} a box; {summary['without_label']:,} boxes have "
            "none",
        ),
    ]
    if summary["persons"]:
        rows.append((summary["persons"], "persons"))
    lines = [f"  {note}" for note in summary["notes"]]
    lines += [f"  {number:9,} {what}" for number, what in rows]
    if summary["beyond"]:
        lines.append(f"  first beyond the end: {summary['first_beyond']}")
    if summary["classes"]:
        lines.append("labels of each class:")
    lines += [f"  {number:9,} {name}" for name, number in summary["classes"].items()]
    return "\n".join(lines)
