"""Run the study; the same command goes on where it was stopped.

    .venv/bin/python -m experiments.study.run [--form FORM] [--out DIR]

First measures the time of a step and prints how long the rest takes. Every run is a `videomae`
command in a folder of DIR. Writes DIR/results.csv, which `experiments.study.report` reads, after
each part; a run that fails stops only the parts that need it.
"""

import argparse
import csv
import functools
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.commands import flags, videomae
from experiments.study import forms
from experiments.study.forms import FORMS, LONG, MOCO, SCRATCH, UNTRAINED, VIDEOMAE, Form, Grid
from experiments.study.lists import CONTROLS, ROOT, SETS, LabelSet, share_name, write_lists
from videomae_jax.training.workdir import read_metrics

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain:tiny,custom", forms.PRETRAIN),
    "contrast": ("contrast:tiny,custom", forms.CONTRAST),
    "classify": ("finetune:tiny,custom", forms.CLASSIFY),
    "linear": ("probe:linear,tiny,custom", forms.LINEAR),
}
COLUMNS = [
    *("labels", "arm", "measure", "share", "pretrain", "mask", "seed", "rate", "steps"),
    *("top1", *CONTROLS, "cpu_seconds"),
]


class Start(NamedTuple):
    """A pre-trained encoder. seconds: of its training."""

    name: str
    workdir: Path
    seed: int
    seconds: float


class Commands(Protocol):
    """How commands are run, or rehearsed."""

    def train(self, name: str, options: list[str], *, seconds: float) -> dict[str, float]:
        """Train in the folder `name`/work; returns what it took."""

    def accuracy(self, name: str, *command: str) -> float:
        """Run `evaluate` or `knn`, and return the accuracy."""

    def probe_accuracies(self, name: str) -> dict[str, float]:
        """Return the accuracy of each rate of a trained probe."""


@dataclass
class Programs:
    """Runs `videomae` commands in a folder."""

    out: Path
    device: str

    def train(self, name: str, options: list[str], *, seconds: float) -> dict[str, float]:
        work = f"--workdir={self.out / name / 'work'}"
        return videomae(self.out, name, "train", *options, work, device=self.device)

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

    def train(self, name: str, options: list[str], *, seconds: float) -> dict[str, float]:
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

    step_seconds: the time of a step by kind and grid. lists: the folder of `write_lists`.
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
        kind, ratio = mask or ("tube", self.form.ratio)
        changes: dict[str, Any] = {"lr": rate, "seed": seed, "data.train": self.videos("train")}
        changes |= {} if arm == MOCO else {"mask.kind": kind, "mask.ratio": ratio}
        what = f"{arm} {kind} {ratio:g} grid {grid.pixels}-{grid.patch}"
        name = f"{self.labels.name}/pretrain {what}, {seconds:g} s, rate {rate:g}, seed {seed}"
        task = "contrast" if arm == MOCO else "pretrain"
        self.train(name, task, grid, seconds, changes)
        return Start(name, self.out / name / "work", seed, seconds)

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
    ) -> dict[str, Any]:
        """Train a classifier and evaluate it. controls: on clips without their motion too."""
        changes = {"lr": rate, "seed": seed, "data.train": self.videos(train)}
        changes |= {"data.eval": self.videos(held_out)}
        changes |= {"init_from": start.workdir} if start else {}
        after = f" from {start.name.split('/')[1]}" if start else f", seed {seed}"
        name = f"{self.labels.name}/classify {arm}, {train}, {seconds:g} s, rate {rate:g}{after}"
        row = self.train(name, "classify", grid or self.form.grid, seconds, changes)
        row["top1"] = self.evaluate(name, held_out)
        for control in CONTROLS if controls else ():
            row[control] = self.evaluate(name, control)
        row |= dict(labels=self.labels.name, arm=arm, measure="fine-tuned", rate=rate, seed=seed)
        return row | {"pretrain": start.seconds if start else 0}

    def evaluate(self, name: str, held_out: str) -> float:
        """Return the accuracy of a classifier on a list."""
        checkpoint = f"--checkpoint={self.out / name / 'work'}"
        manifest = f"--manifest={self.videos(held_out)}"
        return self.commands.accuracy(f"{name}/{held_out}", "evaluate", checkpoint, manifest)

    def features(self, arm: str, start: Start) -> list[dict[str, Any]]:
        """Measure a frozen encoder: nearest neighbours, and a linear probe.

        The rate of the probe is the best on the tuning clips.
        """
        row = dict(labels=self.labels.name, arm=arm, seed=start.seed, pretrain=start.seconds)
        scores = {}
        for train, held_out in (("fit", "tune"), ("train", "val")):
            changes = {"init_from": start.workdir, "seed": start.seed}
            changes |= {"data.train": self.videos(train), "data.eval": self.videos(held_out)}
            name = f"{self.labels.name}/linear {train} from {start.name.split('/')[1]}"
            taken = self.train(name, "linear", self.form.grid, self.form.probe, changes)
            scores[held_out] = self.commands.probe_accuracies(name)
        best = max(scores["tune"], key=scores["tune"].__getitem__)
        linear = dict(measure="linear", top1=scores["val"][best], **taken)
        return [row | linear, row | self.neighbours(start)]

    def neighbours(self, start: Start, *flags: str) -> dict[str, Any]:
        """Classify by a vote of the 20 nearest training clips."""
        name = f"{self.labels.name}/knn {' '.join(flags)} from {start.name.split('/')[1]}"
        lists = f"--train={self.videos('train')}", f"--eval={self.videos('val')}"
        command = ("knn", f"--checkpoint={start.workdir}", *lists, "--k=20", *flags)
        return dict(measure="kNN", top1=self.commands.accuracy(name, *command))

    def videos(self, name: str) -> Path:
        """Return one of the lists that `write_lists` wrote."""
        return self.lists / f"{name}.csv"


class Job(NamedTuple):
    """Some runs, one after the other, that need no other job. work: returns rows of results."""

    name: str
    work: Callable[[], list[dict[str, Any]]]


def step_key(kind: str, grid: Grid) -> str:
    """Return the name of a time of a step."""
    return f"{kind} at {grid.pixels}-{grid.patch}"


def starting_arms(form: Form) -> tuple[str, ...]:
    """Return the arms that are pre-trained."""
    return (VIDEOMAE, MOCO) if form.contrast else (VIDEOMAE,)


def tuning_jobs(study: Study) -> Iterator[Job]:
    """Yield what chooses the rates of one label set, with the first seed."""
    form = study.form
    tune: dict[str, Any] = dict(train="fit", held_out="tune")

    def from_start(arm: str, pretrain_rate: float) -> list[dict[str, Any]]:
        start = study.pretrain(arm, pretrain_rate, 0, seconds=form.curve[-1])
        rows = [
            study.classify(arm, rate, 0, seconds=form.finetune, start=start, **tune)
            for rate in form.rates[arm]
        ]
        return [row | {"pretrain_rate": pretrain_rate} for row in rows]

    def from_scratch(arm: str, rate: float, seconds: float) -> list[dict[str, Any]]:
        return [study.classify(arm, rate, 0, seconds=seconds, **tune)]

    for arm in starting_arms(form):
        rates = form.pretrain_rates[arm]
        if len(rates) * len(form.rates[arm]) > 1:
            for rate in rates:
                work = functools.partial(from_start, arm, rate)
                yield Job(f"{study.labels.name}, tune {arm}, rate {rate:g}", work)
    for arm, seconds in ((LONG, form.curve[-1] + form.finetune), (SCRATCH, form.finetune)):
        if len(form.rates[arm]) > 1:
            for rate in form.rates[arm]:
                work = functools.partial(from_scratch, arm, rate, seconds)
                yield Job(f"{study.labels.name}, tune {arm}, rate {rate:g}", work)


def choose_rates(form: Form, rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return (rate of pre-training, rate of classification) of each arm on one label set."""
    best = {
        arm: (form.pretrain_rates.get(arm, (0.0,))[0], rates[0])
        for arm, rates in form.rates.items()
    }
    for arm in best:
        tuned = [row for row in rows if row["arm"] == arm]
        if tuned:
            row = max(tuned, key=lambda row: row["top1"])
            best[arm] = row.get("pretrain_rate", 0.0), row["rate"]
    return best


def final_jobs(study: Study, rates: dict[str, tuple[float, float]], seed: int) -> Iterator[Job]:
    """Yield the runs of one label set and one seed, what matters most first."""
    form, long = study.form, study.form.curve[-1]

    def pretrained(arm: str) -> list[dict[str, Any]]:
        pretrain_rate, rate = rates[arm]
        start = study.pretrain(arm, pretrain_rate, seed, seconds=long)
        common: dict[str, Any] = dict(seconds=form.finetune, start=start)
        rows = [study.classify(arm, rate, seed, **common, controls=True)]
        rows += study.features(arm, start)
        if seed == 0 and arm == VIDEOMAE:
            row = dict(labels=study.labels.name, arm=UNTRAINED, seed=seed, pretrain=0)
            rows.append(row | study.neighbours(start, "--untrained"))
        for share in form.shares:
            row = study.classify(arm, rate, seed, **common, train=share_name(share))
            rows.append(row | {"share": share})
        return rows

    def scratch(arm: str, seconds: float, shares: tuple[float, ...]) -> list[dict[str, Any]]:
        rate = rates[arm][1]
        rows = [study.classify(arm, rate, seed, seconds=seconds, controls=True)]
        for share in shares:
            row = study.classify(arm, rate, seed, seconds=seconds, train=share_name(share))
            rows.append(row | {"share": share})
        return rows

    def shorter(seconds: float) -> list[dict[str, Any]]:
        pretrain_rate, rate = rates[VIDEOMAE]
        start = study.pretrain(VIDEOMAE, pretrain_rate, seed, seconds=seconds)
        return [study.classify(VIDEOMAE, rate, seed, seconds=form.finetune, start=start)]

    def masked(mask: tuple[str, float]) -> list[dict[str, Any]]:
        pretrain_rate, rate = rates[VIDEOMAE]
        start = study.pretrain(VIDEOMAE, pretrain_rate, seed, seconds=form.mask_pretrain, mask=mask)
        grid, seconds = form.mask_grid, form.mask_finetune
        row = study.classify(VIDEOMAE, rate, seed, seconds=seconds, start=start, grid=grid)
        return [row | {"mask": f"{mask[0]} {mask[1]:g}"}]

    where = f"{study.labels.name}, seed {seed}"
    yield Job(f"{where}, {VIDEOMAE}", functools.partial(pretrained, VIDEOMAE))
    seconds = long + form.finetune
    yield Job(f"{where}, {LONG}", functools.partial(scratch, LONG, seconds, ()))
    yield Job(
        f"{where}, {SCRATCH}", functools.partial(scratch, SCRATCH, form.finetune, form.shares)
    )
    if form.contrast:
        yield Job(f"{where}, {MOCO}", functools.partial(pretrained, MOCO))
    for mask in form.masks:
        yield Job(f"{where}, mask {mask[0]} {mask[1]:g}", functools.partial(masked, mask))
    for seconds in form.curve[:-1]:
        yield Job(f"{where}, {seconds:g} s", functools.partial(shorter, seconds))


def measure(form: Form, out: Path, commands: Commands) -> dict[str, float]:
    """Return the seconds of a step of each kind: what more steps cost beside few, in two runs.

    On a CPU these are CPU seconds, so that other programs do not count.
    """
    clock = "seconds" if form.device == "gpu" else "cpu_seconds"
    kinds = {
        (kind, form.grid): steps
        for kind, steps in form.steps.items()
        if form.contrast or kind != "contrast"
    }
    if form.mask_grid and form.mask_grid != form.grid:
        kinds |= {(kind, form.mask_grid): steps for kind, steps in form.mask_steps.items()}
    labels, found = SETS["actions"], {}
    study = Study(form, labels, commands, out / "lists" / labels.name, out, {})
    first = f"measure/{step_key('pretrain', form.grid)}, {form.steps['pretrain'][0]}"
    for (kind, grid), (few, many) in kinds.items():
        taken = []
        for steps in (few, many):
            changes: dict[str, Any] = {"steps": steps, "warmup_steps": 0, "lr": 1e-3}
            changes |= {"data.train": study.videos("train")}
            if kind in ("classify", "linear"):
                changes |= {"data.eval": study.videos("tune")}
            if kind == "pretrain":
                changes |= {"mask.ratio": form.ratio}
            if kind == "linear":
                changes |= {"init_from": out / first / "work"}
            name = f"measure/{step_key(kind, grid)}, {steps}"
            options = study.options(kind, grid, changes)
            taken.append(commands.train(name, options, seconds=0.0)[clock])
        # Runs of one step differ by less than their noise.
        found[step_key(kind, grid)] = max((taken[1] - taken[0]) / (many - few), 1e-3)
    return found


class Runner:
    """Does jobs in threads, and writes the rows of each that is done."""

    def __init__(self, out: Path, workers: int):
        self.out, self.pool = out, ThreadPoolExecutor(workers)
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def do(self, jobs: list[Job], *, keep: bool) -> list[dict[str, Any]]:
        """Return the rows of all jobs. keep: as results."""
        futures = {self.pool.submit(job.work): job.name for job in jobs}
        rows = []
        for future in as_completed(futures):
            try:
                rows += future.result()
            except (Exception, SystemExit) as error:  # the other jobs go on, a whole night
                self.failed.append(f"{futures[future]}: {error!r}")
                print(self.failed[-1], flush=True)
            if keep:
                write_results(self.out / "results.csv", self.rows + rows)
        if keep:
            self.rows += rows
        return rows


def write_results(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table of results whole or not at all."""
    draft = file.with_suffix(".draft")
    with open(draft, "w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows({"share": 1.0} | row for row in rows)
    draft.replace(file)


def do_study(runner: Runner, studies: list[Study], *, keep: bool = True) -> None:
    """Choose the rates of each label set, then do all that is reported."""
    tuned = runner.do([job for study in studies for job in tuning_jobs(study)], keep=False)
    jobs: list[Job] = []
    for seed in range(studies[0].form.seeds):
        for study in studies:
            rows = [row for row in tuned if row["labels"] == study.labels.name]
            jobs += final_jobs(study, choose_rates(study.form, rows), seed)
    runner.do(jobs, keep=keep)


def main() -> None:
    """Measure, print the estimate, and run the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--form", choices=FORMS, default="short", help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="(default: runs/study-FORM)")
    args = parser.parse_args()
    form, out = FORMS[args.form], (args.out or ROOT / f"runs/study-{args.form}").absolute()
    for labels in SETS.values():
        write_lists(out / "lists" / labels.name, labels, form.shares)
    programs = Programs(out, form.device)
    step_seconds = measure(form, out, programs)
    rehearsal = Rehearsal(form.start)

    def studies(commands: Commands) -> list[Study]:
        return [
            Study(form, labels, commands, out / "lists" / labels.name, out, step_seconds)
            for labels in SETS.values()
        ]

    do_study(Runner(out, form.workers), studies(rehearsal), keep=False)
    minutes = rehearsal.seconds / form.workers / 60
    print(f"{rehearsal.count} commands, about {minutes:.0f} minutes from now", flush=True)
    facts = {
        "form": args.form,
        "settings": asdict(form),
        "step_seconds": step_seconds,
        "estimated_minutes": minutes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {form.device}",
        "versions": {name: version(name) for name in ("jax", "flax")}
        | {"python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=1))
    runner = Runner(out, form.workers)
    do_study(runner, studies(programs))
    if runner.failed:
        raise SystemExit(f"{len(runner.failed)} parts failed; the same command tries them again")


if __name__ == "__main__":
    main()
