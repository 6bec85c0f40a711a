"""One run of the study: a `videomae` command and what came out of it."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.commands import flags, videomae
from experiments.study import forms
from experiments.study.forms import MOCO, STUDENT, Form, Grid
from experiments.study.lists import CONTROLS, LabelSet
from videomae_jax.training.workdir import read_metrics

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain:tiny,custom", forms.PRETRAIN),
    "contrast": ("contrast:tiny,custom", forms.CONTRAST),
    "classify": ("finetune:tiny,custom", forms.CLASSIFY),
    "linear": ("probe:linear,tiny,custom", forms.LINEAR),
    "student": ("finetune:tiny,custom", forms.CLASSIFY | forms.STUDENT_MODEL),
    "taught": ("finetune:tiny,custom", forms.CLASSIFY | forms.STUDENT_MODEL),
}


class Start(NamedTuple):
    """A pre-trained encoder. seconds: of its training. row: what its training took."""

    name: str
    workdir: Path
    seed: int
    seconds: float
    row: dict[str, Any]


class Commands(Protocol):
    """How commands are run, or rehearsed."""

    def train(
        self, name: str, options: list[str], *, seconds: float, afresh: bool = False
    ) -> dict[str, float]:
        """Train in the folder `name`/work; returns what it took. afresh: never resume."""

    def accuracy(self, name: str, *command: str) -> float:
        """Run `evaluate` or `knn`, and return the accuracy."""

    def probe_accuracies(self, name: str) -> dict[str, float]:
        """Return the accuracy of each rate of a trained probe."""


@dataclass
class Programs:
    """Runs `videomae` commands in a folder."""

    out: Path
    device: str

    def train(
        self, name: str, options: list[str], *, seconds: float, afresh: bool = False
    ) -> dict[str, float]:
        command = ("train", *options, f"--workdir={self.out / name / 'work'}")
        return videomae(self.out, name, *command, device=self.device, afresh=afresh)

    def accuracy(self, name: str, *command: str) -> float:
        file = self.out / name / "scores.json"
        videomae(self.out, name, *command, f"--json={file}", device=self.device)
        top1 = json.loads(file.read_text())["top1"]
        return (top1["20"] if command[0] == "knn" else top1)["value"]

    def probe_accuracies(self, name: str) -> dict[str, float]:
        last = read_metrics(str(self.out / name / "work"))[-1]
        scores = {key.removeprefix("eval/"): value for key, value in last.items()}
        return {key: value for key, value in scores.items() if key.startswith("top1_x")}


class Rehearsal:
    """Runs nothing and adds up the time that the commands would take."""

    def __init__(self, start: float):
        self.start, self.seconds, self.count = start, 0.0, 0
        self.adding = threading.Lock()
        self.trained: set[str] = set()

    def train(
        self, name: str, options: list[str], *, seconds: float, afresh: bool = False
    ) -> dict[str, float]:
        with self.adding:
            if name not in self.trained:
                self.trained.add(name)
                self.seconds += seconds + self.start
                self.count += 1
        return {"seconds": seconds, "cpu_seconds": seconds, "gigabytes": 0.0}

    def accuracy(self, name: str, *command: str) -> float:
        with self.adding:
            self.seconds += self.start
            self.count += 1
        return 0.5

    def probe_accuracies(self, name: str) -> dict[str, float]:
        return {"top1_x1": 0.5}


@dataclass
class Study:
    """The runs of a form on one label set. Methods run what is not done yet.

    step_seconds: the time of a step by kind and grid. lists: what `write_lists` wrote, a folder
    for each size of the sources of a grid.
    """

    form: Form
    labels: LabelSet
    commands: Commands
    lists: Path
    out: Path
    step_seconds: dict[str, float]

    def options(self, kind: str, grid: Grid, *changes: dict[str, Any]) -> list[str]:
        """Return the options of `videomae train`."""
        recipe, settings = RECIPES[kind]
        given: tuple[dict[str, Any], ...] = (
            settings,
            grid.options(),
            forms.FEED,
            self.labels.options(kind),
            self.form.changes,
        )
        return flags(recipe, *given, *changes)

    def train(
        self, name: str, kind: str, grid: Grid, seconds: float, changes: dict[str, Any]
    ) -> dict[str, Any]:
        """Train for so many seconds; returns {"steps", "cpu_seconds", ...}."""
        steps = max(2, round(seconds / self.step_seconds[step_key(kind, grid)]))
        schedule = {"steps": steps, "warmup_steps": steps // 10}
        schedule |= {"save_every": max(1, steps // 4)}
        options = self.options(kind, grid, changes, schedule)
        return {"steps": steps} | self.commands.train(name, options, seconds=seconds)

    def pretrain(
        self,
        arm: str,
        rate: float,
        seed: int,
        *,
        seconds: float,
        mask: tuple[str, float] | None = None,
    ) -> Start:
        """Pre-train an encoder without labels. mask: one of those that are compared, else None."""
        grid = self.form.mask_grid if mask else self.form.grid
        assert grid
        kind, ratio = mask or self.form.mask
        changes: dict[str, Any] = {
            "lr": rate,
            "seed": seed,
            "data.train": self.videos("train", grid),
        }
        changes |= {} if arm == MOCO else {"mask.kind": kind, "mask.ratio": ratio}
        what = f"{arm} {kind} {ratio:g} grid {grid.pixels}-{grid.patch}"
        name = f"{self.labels.name}/pretrain {what}, {seconds:g} s, rate {rate:g}, seed {seed}"
        task = "contrast" if arm == MOCO else "pretrain"
        row = self.train(name, task, grid, seconds, changes)
        row |= dict(labels=self.labels.name, arm=arm, measure="pre-training", rate=rate, seed=seed)
        return Start(name, self.out / name / "work", seed, seconds, row | {"pretrain": seconds})

    def classify(
        self,
        arm: str,
        rate: float,
        seed: int,
        *,
        seconds: float,
        start: Start | None = None,
        train: str = "train",
        held_out: str = "val",
        grid: Grid | None = None,
        controls: bool = False,
        teacher: Path | None = None,
    ) -> dict[str, Any]:
        """Train a classifier and evaluate it. controls: on clips without their motion too.

        teacher: the run of a classifier that teaches this one. Adds "workdir" to the results.
        """
        grid = grid or self.form.grid
        changes = {"lr": rate, "seed": seed, "data.train": self.videos(train, grid)}
        changes |= {"data.eval": self.videos(held_out, grid)}
        changes |= {"init_from": start.workdir} if start else {}
        changes |= {"teacher": teacher} if teacher else {}
        kind = "taught" if teacher else "student" if arm == STUDENT else "classify"
        after = f" from {start.name.split('/')[1]}" if start else f", seed {seed}"
        name = f"{self.labels.name}/classify {arm}, {train}, {seconds:g} s, rate {rate:g}{after}"
        row = self.train(name, kind, grid, seconds, changes)
        row["top1"] = self.evaluate(name, held_out, grid)
        for control in CONTROLS if controls else ():
            row[control] = self.evaluate(name, control, grid)
        row |= dict(labels=self.labels.name, arm=arm, measure="fine-tuned", rate=rate, seed=seed)
        row |= {"workdir": self.out / name / "work"}
        return row | {"pretrain": start.seconds if start else 0}

    def evaluate(self, name: str, held_out: str, grid: Grid) -> float:
        """Return the accuracy of a classifier on a list."""
        checkpoint = f"--checkpoint={self.out / name / 'work'}"
        manifest = f"--manifest={self.videos(held_out, grid)}"
        return self.commands.accuracy(f"{name}/{held_out}", "evaluate", checkpoint, manifest)

    def features(self, arm: str, start: Start) -> list[dict[str, Any]]:
        """Measure a frozen encoder: nearest neighbours, and a linear probe.

        The rate of the probe is the best on the tuning clips.
        """
        row = dict(labels=self.labels.name, arm=arm, seed=start.seed, pretrain=start.seconds)
        scores = {}
        for train, held_out in (("fit", "tune"), ("train", "val")):
            changes = {"init_from": start.workdir, "seed": start.seed}
            changes |= {"data.train": self.videos(train, self.form.grid)}
            changes |= {"data.eval": self.videos(held_out, self.form.grid)}
            name = f"{self.labels.name}/linear {train} from {start.name.split('/')[1]}"
            taken = self.train(name, "linear", self.form.grid, self.form.probe, changes)
            scores[held_out] = self.commands.probe_accuracies(name)
        best = max(scores["tune"], key=scores["tune"].__getitem__)
        linear = dict(measure="linear", top1=scores["val"][best], **taken)
        return [row | linear, row | self.neighbours(start)]

    def neighbours(self, start: Start, *flags: str) -> dict[str, Any]:
        """Classify by a vote of the 20 nearest training clips."""
        name = f"{self.labels.name}/knn {' '.join(flags)} from {start.name.split('/')[1]}"
        grid = self.form.grid
        lists = f"--train={self.videos('train', grid)}", f"--eval={self.videos('val', grid)}"
        command = ("knn", f"--checkpoint={start.workdir}", *lists, "--k=20", *flags)
        return dict(measure="kNN", top1=self.commands.accuracy(name, *command))

    def videos(self, name: str, grid: Grid) -> Path:
        """Return one of the lists that `write_lists` wrote."""
        return self.lists / f"{grid.source}/{name}.csv"


def step_key(kind: str, grid: Grid) -> str:
    """Return the name of a time of a step."""
    return f"{kind} at {grid.pixels}-{grid.patch}"
