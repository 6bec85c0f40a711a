"""VideoMAE, MoCo v3, or neither; with a teacher, or without: each given the same time.

    .venv/bin/python experiments/objectives.py [--out DIR] [--seeds N] [--workers N]

One tiny encoder on the clips of data/mocap_studio. Each run gets so many steps as fit into its
seconds of one core, by the CPU time of a step that is measured first. The rate of each
pre-training is the one whose features are best for a linear probe of clips that it is not
trained on, never of the validation clips. Every run is a `videomae` command: a finished one is
not repeated, and a stopped one resumes. Writes objectives.csv, .md and .png to docs/study/.
"""

import argparse
import csv
import functools
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from commands import flags, videomae
from tables import spread

from videomae_jax.host import count_cores
from videomae_jax.training.workdir import read_metrics

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data/mocap_studio"
RESULTS = ROOT / "docs/study"

FIT = 25  # of the 34 training clips of a class, where the other 9 choose the rate
# Seconds of one core.
PRETRAIN, FINETUNE, PROBE, STUDENT = 300, 40, 30, 50

# 64 tokens of all 48 frames of a video.
CLIP = {
    "model.patch": (4, 8, 8),
    "clip.frames": 16,
    "clip.stride": 3,
    "clip.height": 32,
    "clip.width": 32,
    "clip.source_height": 40,
    "clip.source_width": 40,
}
FEED = {
    "data.memory_gb": 2.0,
    "data.threads": 1,
    "data.holdout": 0.0,
    "base_lr": 0.0,
    "log_every": 50,
    "eval_every": 100_000,
}
VIDEOMAE, MOCO, SCRATCH = "VideoMAE", "MoCo v3", "scratch"
LONG = "scratch, equal time"
RATES = (5e-4, 2e-3)
PRETRAINING = {
    VIDEOMAE: (
        "pretrain:tiny,custom",
        {
            "mask.ratio": 0.75,
            "normalized_targets": False,  # flat backgrounds: see configs/demo.py
            "batch_size": 16,
            "min_lr": 1e-5,
        },
    ),
    MOCO: ("contrast:tiny,custom", {"batch_size": 32}),
}
# Crops and flips only: these runs are short.
CLASSIFY = {
    "clip.sampling": "sparse",
    "augment.operations": 0,
    "augment.erase": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.min_area": 0.5,
    "repeats": 1,
    "batch_size": 32,
    "lr": 2e-3,
    "min_lr": 1e-6,
}
LINEAR = {"clip.sampling": "sparse", "augment.min_area": 0.5, "batch_size": 32, "min_lr": 0.0}
SMALL = {
    "model.encoder.width": 64,
    "model.encoder.mlp_width": 256,
    "model.encoder.depth": 2,
    "model.encoder.heads": 2,
}
ALONE, TAUGHT = "student", "student, teacher"
UNTRAINED = "untrained"
# The numbers of steps of two runs, whose difference is the time of a step.
STEPS = {
    VIDEOMAE: (200, 1200),
    MOCO: (20, 70),
    "linear": (30, 130),
    "classify": (40, 160),
    ALONE: (30, 230),
    TAUGHT: (30, 130),
}


class Study:
    """The runs of one folder. A method makes a run, unless it was made, and returns its result."""

    def __init__(self, out: Path):
        self.out = out
        self.measuring = threading.Lock()

    def train(self, name: str, kind: str, seconds: float, *options: Any) -> dict[str, Any]:
        """Train for so many seconds of one core.

        kind: of its steps, see `STEPS`. options: the arguments of `flags`. Returns what it took,
        with "steps" and "workdir".
        """
        steps = max(1, round(seconds / self.seconds_a_step(kind, options)))
        taken = self._train(name, *options, {"steps": steps, "warmup_steps": steps // 10})
        return taken | {"steps": steps, "workdir": self.out / name / "work"}

    def _train(self, name: str, *options: Any) -> dict[str, Any]:
        workdir = self.out / name / "work"
        return videomae(self.out, name, "train", *flags(*options), f"--workdir={workdir}")

    def seconds_a_step(self, kind: str, options: tuple) -> float:
        """Return the CPU time of a step: what more steps cost beside few, in two short runs."""
        few, many = STEPS[kind]
        with self.measuring:
            taken = [
                self._train(f"seconds {kind} {n}", *options, {"steps": n, "warmup_steps": few // 2})
                for n in (few, many)
            ]
        return (taken[1]["cpu_seconds"] - taken[0]["cpu_seconds"]) / (many - few)

    def pretrain(self, arm: str, lr: float, seed: int) -> dict[str, Any]:
        """Pre-train an encoder on the training clips, without their labels."""
        recipe, changes = PRETRAINING[arm]
        more = {"lr": lr, "seed": seed, "data.train": self.out / "train.csv"}
        name = f"pretrain {arm}, rate {lr:g}, seed {seed}"
        taken = self.train(name, arm, PRETRAIN, recipe, CLIP, FEED, changes, more)
        return dict(arm=arm, measure="pre-training", lr=lr, seed=seed, **taken)

    def probe(self, start: dict[str, Any], train: str, held_out: str) -> dict[str, Any]:
        """Train a linear head at several rates; "top1_xR" is the accuracy at R times the first."""
        more = {"init_from": start["workdir"], "seed": start["seed"], **self.lists(train, held_out)}
        name = f"linear {train}, {start['workdir'].parent.name}"
        options = ("probe:linear,tiny,custom", CLIP, FEED, LINEAR, more)
        taken = self.train(name, "linear", PROBE, *options)
        scores = read_metrics(str(taken["workdir"]))[-1]
        scores = {key.removeprefix("eval/"): value for key, value in scores.items()}
        row = dict(arm=start["arm"], measure="linear", seed=start["seed"], **taken)
        return row | {key: value for key, value in scores.items() if key.startswith("top1_x")}

    def neighbours(self, start: dict[str, Any], *, arm: str) -> dict[str, Any]:
        """Classify by a vote of the 20 nearest training clips."""
        untrained = ("--untrained",) if arm == UNTRAINED else ()
        name = f"knn {arm}, {start['workdir'].parent.name}"
        file = self.out / name / "knn.json"
        lists = (f"--train={self.out / 'train.csv'}", f"--eval={self.out / 'val.csv'}")
        options = (f"--checkpoint={start['workdir']}", *lists, "--k=20", *untrained)
        taken = videomae(self.out, name, "knn", *options, f"--json={file}")
        top1 = json.loads(file.read_text())["top1"]["20"]["value"]
        return dict(arm=arm, measure="kNN", seed=start["seed"], top1=top1, **taken)

    def classify(
        self, arm: str, seed: int, kind: str, seconds: float, *changes: dict[str, Any]
    ) -> dict[str, Any]:
        """Train a classifier, and evaluate three views of each validation clip."""
        lists = self.lists("train", "val")
        options = ("finetune:tiny,custom", CLIP, FEED, CLASSIFY, lists, *changes, {"seed": seed})
        name = f"classify {arm}, seed {seed}"
        taken = self.train(name, kind, seconds, *options)
        file = self.out / name / "scores.json"
        given = (f"--manifest={self.out / 'val.csv'}", "--views=3x1", f"--json={file}")
        videomae(self.out, name, "evaluate", f"--checkpoint={taken['workdir']}", *given)
        top1 = json.loads(file.read_text())["top1"]["value"]
        return dict(arm=arm, measure="fine-tuned", seed=seed, top1=top1, **taken)

    def lists(self, train: str, held_out: str) -> dict[str, Path]:
        """Return the options of two of the lists that `write_lists` wrote."""
        return {"data.train": self.out / f"{train}.csv", "data.eval": self.out / f"{held_out}.csv"}


def main() -> None:
    """Do what is not done yet, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/objectives", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=count_cores())
    args = parser.parse_args()
    write_lists(args.out)
    study = Study(args.out)
    with ThreadPoolExecutor(args.workers) as pool:
        starts = pretrain(study, pool, seeds=args.seeds)
        rows = [*starts, *measure_features(study, pool, starts)]
        rows += finetune(study, pool, starts, seeds=args.seeds)
    write_report(rows)


def pretrain(study: Study, pool: Executor, *, seeds: int) -> list[dict[str, Any]]:
    """Pre-train with every seed, at the rate that is best for a linear probe of the first."""
    first = {
        (arm, lr): pool.submit(study.pretrain, arm, lr, 0) for arm in PRETRAINING for lr in RATES
    }
    tuned = {
        key: pool.submit(study.probe, start.result(), "fit", "tune") for key, start in first.items()
    }
    best = {
        arm: max(RATES, key=lambda lr: best_score(tuned[arm, lr].result())) for arm in PRETRAINING
    }
    others = [
        pool.submit(study.pretrain, arm, lr, seed)
        for seed in range(1, seeds)
        for arm, lr in best.items()
    ]
    return [first[key].result() for key in best.items()] + [run.result() for run in others]


def best_score(probe: dict[str, Any]) -> float:
    """Return the highest accuracy of a probe at any of its rates."""
    return max(value for key, value in probe.items() if key.startswith("top1_x"))


def measure_features(
    study: Study, pool: Executor, starts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure every frozen encoder with kNN and a linear probe, and an untrained one with kNN.

    The rate of a probe is the one that was best on the tuning clips, with the first seed.
    """
    runs = [pool.submit(study.neighbours, start, arm=start["arm"]) for start in starts]
    runs.append(pool.submit(study.neighbours, starts[0], arm=UNTRAINED))
    probes = [pool.submit(study.probe, start, "train", "val") for start in starts]
    rows = [run.result() for run in [*runs, *probes]]
    for row in rows:
        if row["measure"] == "linear":
            start = next(start for start in starts if start["arm"] == row["arm"])
            tuned = study.probe(start, "fit", "tune")
            rate = max((key for key in tuned if key.startswith("top1_x")), key=tuned.get)
            row["top1"] = row[rate]
    return rows


def finetune(
    study: Study, pool: Executor, starts: list[dict[str, Any]], *, seeds: int
) -> list[dict[str, Any]]:
    """Train every classifier: from each start, from scratch, and the students."""
    classify = functools.partial(pool.submit, study.classify)
    others = [classify(LONG, n, "classify", PRETRAIN + FINETUNE) for n in range(seeds)]  # longest
    tuned = [
        classify(start["arm"], start["seed"], "classify", FINETUNE, {"init_from": start["workdir"]})
        for start in starts
    ]
    for seed in range(seeds):
        others.append(classify(SCRATCH, seed, "classify", FINETUNE))
        others.append(classify(ALONE, seed, ALONE, STUDENT, SMALL))
    rows = [run.result() for run in tuned]
    teachers = {row["seed"]: row["workdir"] for row in rows if row["arm"] == VIDEOMAE}
    for seed, teacher in teachers.items():
        others.append(classify(TAUGHT, seed, TAUGHT, STUDENT, SMALL, {"teacher": teacher}))
    return rows + [run.result() for run in others]


def write_lists(out: Path) -> None:
    """Write train, val, and fit and tune, the two parts of train."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        lines = (DATA / f"{name}.csv").read_text().splitlines()
        (out / f"{name}.csv").write_text("".join(f"{DATA / line}\n" for line in lines))
    parts: dict[str, list[str]] = {"fit": [], "tune": []}
    seen: dict[str, int] = {}
    for line in (out / "train.csv").read_text().splitlines():
        label = line.rsplit(" ", 1)[1]
        seen[label] = seen.get(label, 0) + 1
        parts["fit" if seen[label] <= FIT else "tune"].append(f"{line}\n")
    for name, lines in parts.items():
        (out / f"{name}.csv").write_text("".join(lines))


def write_report(rows: list[dict[str, Any]]) -> None:
    """Write objectives.csv, objectives.md and objectives.png."""
    columns = ("arm", "measure", "seed", "lr", "steps", "top1")
    columns += ("seconds", "cpu_seconds", "gigabytes")
    with open(RESULTS / "objectives.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    (RESULTS / "objectives.md").write_text("\n".join(report_lines(rows)) + "\n")
    draw(rows)


def select(rows: list[dict[str, Any]], arm: str, measure: str) -> list[dict[str, Any]]:
    """Return the rows of the seeds of an arm."""
    return [row for row in rows if row["arm"] == arm and row["measure"] == measure]


def report_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the report."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    yield f"`python experiments/objectives.py`: {platform.machine()}, {os.cpu_count()} cores, one"
    yield f"for each run, Python {platform.python_version()}, {versions},"
    yield f"{time.strftime('%Y-%m-%d')}. Top-1 on 144 validation clips of 12 actions (chance 8.3)"
    yield "in %: mean ± standard deviation over seeds (each seed). Each run has the steps that fit"
    yield f"into its seconds of one core: {PRETRAIN} of pre-training, {FINETUNE} of fine-tuning,"
    yield f"{PRETRAIN + FINETUNE} of {LONG}, {STUDENT} of a student."
    yield ""
    yield "| encoder | kNN | linear | fine-tuned |"
    yield "|---|---|---|---|"
    for arm in (UNTRAINED, SCRATCH, LONG, VIDEOMAE, MOCO, ALONE, TAUGHT):
        found = [select(rows, arm, measure) for measure in ("kNN", "linear", "fine-tuned")]
        cells = [spread([row["top1"] for row in seeds]) if seeds else "-" for seeds in found]
        yield f"| {arm} | {' | '.join(cells)} |"
    yield ""
    yield "| run | rate | steps | CPU ms a step | CPU minutes in all | memory, GB |"
    yield "|---|---|---|---|---|---|"
    for arm, measure, seconds in (
        (VIDEOMAE, "pre-training", PRETRAIN),
        (MOCO, "pre-training", PRETRAIN),
        (SCRATCH, "fine-tuned", FINETUNE),
        (ALONE, "fine-tuned", STUDENT),
        (TAUGHT, "fine-tuned", STUDENT),
    ):
        found = select(rows, arm, measure)
        steps, rate = found[0]["steps"], found[0].get("lr", CLASSIFY["lr"])
        minutes = statistics.mean(row["cpu_seconds"] for row in found) / 60
        memory = max(row["gigabytes"] for row in found)
        yield f"| {measure}, {arm} | {rate:g} | {steps} | {1000 * seconds / steps:.0f} | " + (
            f"{minutes:.1f} | {memory:.2f} |"
        )


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the accuracy of each arm and measure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    arms = (SCRATCH, LONG, VIDEOMAE, MOCO, ALONE, TAUGHT)
    for number, measure in enumerate(("kNN", "linear", "fine-tuned")):
        for place, arm in enumerate(arms):
            values = [100 * row["top1"] for row in select(rows, arm, measure)]
            if not values:
                continue
            x = place + (0.27 * (number - 1) if arm in PRETRAINING else 0)
            label = measure if arm == VIDEOMAE else None
            axes.bar(x, statistics.mean(values), 0.25, color=f"C{number}", alpha=0.6, label=label)
            axes.plot([x] * len(values), values, ".", color="black", markersize=4)
    axes.axhline(100 / 12, color="grey", linestyle=":", label="chance")
    axes.set_xticks(range(len(arms)), [arm.replace(", ", ",\n") for arm in arms])
    axes.set(ylabel="top-1, %", title="equal time of one core; dots: seeds")
    axes.legend()
    figure.savefig(RESULTS / "objectives.png", dpi=110)


if __name__ == "__main__":
    main()
