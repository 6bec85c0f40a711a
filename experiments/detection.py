"""Does a detector of actions learn, and what from? Four arms on data/mocap_scenes.

    .venv/bin/python experiments/detection.py [--out DIR] [--seeds N] [--workers N]

Pre-trains a small encoder on the project's clips. Then trains a detector from it, from scratch,
with the encoder frozen, and with the whole image in the place of every box. Every run is a
`videomae` command: a finished one is not repeated, and a stopped one resumes. Writes
detection.csv, detection.md and detection.png to docs/study/.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from commands import flags, videomae

from videomae_jax.host import count_cores

ROOT = Path(__file__).parent.parent
SCENES, STUDIO = ROOT / "data/mocap_scenes", ROOT / "data/mocap_studio"
RESULTS = ROOT / "docs/study"

# 2 x 8 x 8 tokens of a clip of 1.9 seconds; a person of the scenes is about 3 patches high.
CLIP = {
    "model.patch": (4, 8, 8),
    "clip.frames": 8,
    "clip.stride": 6,
    "clip.height": 64,
    "clip.width": 64,
}
FEED = {"data.memory_gb": 3.0, "data.threads": 1, "base_lr": 0.0}
PRETRAIN = {
    "clip.source_height": 128,
    "clip.source_width": 128,
    "mask.ratio": 0.75,
    "normalized_targets": False,  # flat backgrounds: see configs/demo.py
    "data.holdout": 0.0,
    "batch_size": 16,
    "steps": 4000,
    "warmup_steps": 300,
    "lr": 2e-3,
    "min_lr": 1e-5,
}
DETECT = {
    "data.train": SCENES / "train.csv",
    "data.videos": SCENES / "train",
    "data.classes": SCENES / "classes.pbtxt",
    "data.holdout": 0.0,
    "batch_size": 8,
    "steps": 1000,
    "warmup_steps": 100,
    "lr": 1e-3,
    "min_lr": 1e-6,
    "drop_path": 0.0,
}
PRETRAINED, SCRATCH, FROZEN, WHOLE = "pre-trained", "scratch", "frozen encoder", "whole image"
ARMS = {
    PRETRAINED: {},
    SCRATCH: {},
    FROZEN: {"layer_decay": 0.0, "lr": 1e-2},  # only a head
    WHOLE: {"boxes.whole": True},
}
TAKEN = ("arm", "seed", "seconds", "cpu_seconds", "gigabytes")
BOXES = {"annotated boxes": (), "detected boxes": (f"--boxes={SCENES / 'val_detected.csv'}",)}


def spread(values: list[float]) -> str:
    """Return "mean ± deviation (each)" in %."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f} ({each})"


def main() -> None:
    """Do what is not done yet, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/detection", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=count_cores())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_videos(args.out / "clips.csv")
    clips = {"data.train": args.out / "clips.csv"}
    options = flags("pretrain:tiny,custom", CLIP, FEED, PRETRAIN, clips)
    videomae(args.out, "pretrain", "train", *options, f"--workdir={args.out / 'pretrain/work'}")
    runs = [(arm, seed) for seed in range(args.seeds) for arm in ARMS]
    with ThreadPoolExecutor(args.workers) as pool:
        results = list(pool.map(lambda run: measure(args.out, *run), runs))
    write_report(results)


def write_videos(file: Path) -> None:
    """List the training videos of both sets, for pre-training without labels."""
    paths = sorted((SCENES / "train").glob("*.mp4")) + sorted((STUDIO / "train").rglob("*.mp4"))
    file.write_text("".join(f"{path}\n" for path in paths))


def measure(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train and evaluate a detector; returns a row of the table."""
    start = {} if arm == SCRATCH else {"init_from": out / "pretrain/work"}
    name = f"{arm}, seed {seed}"
    workdir = out / name / "work"
    options = flags("detect:tiny,custom", CLIP, FEED, DETECT, start, ARMS[arm], {"seed": seed})
    row: dict[str, Any] = {"arm": arm, "seed": seed}
    row |= videomae(out, name, "train", *options, f"--workdir={workdir}")
    videos = (f"--manifest={SCENES / 'val.csv'}", f"--videos={SCENES / 'val'}")
    for boxes, given in BOXES.items():
        file = out / name / f"{boxes}.json"
        model = (f"--checkpoint={workdir}", "--batch-size=10")
        videomae(out, name, "evaluate", *model, *videos, *given, f"--json={file}")
        found = json.loads(file.read_text())
        row[boxes] = found["map"]
        if found["upper_bound"]:
            row |= {score["name"]: score["average_precision"] for score in found["classes"]}
    return row


def write_report(results: list[dict[str, Any]]) -> None:
    """Write detection.csv, detection.md and detection.png."""
    with open(RESULTS / "detection.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(results[0]))
        table.writeheader()
        table.writerows(results)
    (RESULTS / "detection.md").write_text("\n".join(report_lines(results)) + "\n")
    draw(results)


def report_lines(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the report."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    yield "# The detection study"
    yield ""
    yield f"`python experiments/detection.py`: {platform.machine()}, {os.cpu_count()} cores,"
    yield f"Python {platform.python_version()}, {versions}, {time.strftime('%Y-%m-%d')}."
    yield "Frame mAP on the 150 validation key frames of `data/mocap_scenes`, in %: mean ±"
    yield "standard deviation over seeds (each seed). With the annotated boxes, chance is 14.0 and"
    yield "random scores have 17.2."
    yield ""
    yield f"| arm | {' | '.join(BOXES)} | minutes to train |"
    yield "|---|---|---|---|"
    for arm in ARMS:
        rows = [row for row in results if row["arm"] == arm]
        minutes = statistics.mean(row["seconds"] for row in rows) / 60
        scores = " | ".join(spread([row[boxes] for row in rows]) for boxes in BOXES)
        yield f"| {arm} | {scores} | {minutes:.1f} |"


def draw(results: list[dict[str, Any]]) -> None:
    """Draw the average precision of each class, with annotated boxes."""
    from matplotlib.figure import Figure

    classes = [name for name in results[0] if name not in (*TAKEN, *BOXES)]
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(ARMS):
        rows = [row for row in results if row["arm"] == arm]
        for place, name in enumerate(classes):
            values = [100 * row[name] for row in rows]
            x = place + 0.2 * (number - 1.5)
            label = arm if place == 0 else None
            axes.bar(x, statistics.mean(values), 0.18, color=f"C{number}", alpha=0.6, label=label)
            axes.plot([x] * len(values), values, ".", color="black", markersize=3)
    axes.set_xticks(range(len(classes)), classes)
    axes.set(ylabel="average precision, %", title="annotated boxes; dots: seeds")
    axes.legend()
    figure.savefig(RESULTS / "detection.png", dpi=110)


if __name__ == "__main__":
    main()
