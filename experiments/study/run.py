"""Run the study; the same command goes on where it was stopped.

    .venv/bin/python -m experiments.study.run [--form FORM] [--out DIR]

First measures the time of a step and prints how long the rest takes. Every run is a `videomae`
command in a folder of DIR. Writes DIR/results.csv, which `experiments.study.report` reads, after
each part; a run that fails stops only the parts that need it.
"""

import argparse
import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.study.forms import FORMS, Form, Grid
from experiments.study.jobs import Job, choose_rates, final_jobs, tuning_jobs
from experiments.study.lists import CONTROLS, ROOT, SETS, write_lists
from experiments.study.runs import Commands, Programs, Rehearsal, Study, step_key
from videomae_jax.diagnostics.environment import describe_environment

COLUMNS = [
    *("labels", "arm", "measure", "share", "pretrain", "mask", "seed", "rate", "steps"),
    *("top1", *CONTROLS, "cpu_seconds", "gigabytes"),
]


def measure(form: Form, out: Path, commands: Commands) -> dict[str, float]:
    """Return the seconds of a step of each kind: what more steps cost beside few, in two runs.

    On a CPU these are CPU seconds, so that other programs hardly count.
    """
    clock = "seconds" if form.device == "gpu" else "cpu_seconds"
    runs = {"contrast": form.contrast, "linear": form.probe}
    runs |= dict.fromkeys(("student", "taught"), form.student)
    kinds = {(kind, form.grid): n for kind, n in form.steps.items() if runs.get(kind, True)}
    if form.mask_grid and form.mask_grid != form.grid:
        kinds |= {(kind, form.mask_grid): steps for kind, steps in form.mask_steps.items()}
    labels, found = SETS["actions"], {}
    study = Study(form, labels, commands, out / "lists" / labels.name, out, {})

    def folder(kind: str, grid: Grid, trial: int) -> str:
        return f"measure/{step_key(kind, grid)}, {trial}"

    def train(kind: str, grid: Grid, trial: int, steps: int) -> float:
        changes: dict[str, Any] = {"steps": steps, "warmup_steps": 0, "lr": 1e-3}
        changes |= {"data.train": study.videos("train", grid)}
        if kind == "pretrain":
            changes |= {"mask.kind": form.mask[0], "mask.ratio": form.mask[1]}
        elif kind != "contrast":
            changes |= {"data.eval": study.videos("tune", grid)}
        if kind == "linear":
            changes |= {"init_from": out / folder("pretrain", form.grid, 0) / "work"}
        if kind == "taught":
            changes |= {"teacher": out / folder("classify", form.grid, 0) / "work"}
        options = study.options(kind, grid, changes)
        name = folder(kind, grid, trial)
        # Afresh: a resumed run would seem fast.
        return commands.train(name, options, seconds=0.0, afresh=True)[clock]

    for (kind, grid), (few, many) in kinds.items():
        train(kind, grid, 0, few)  # compiles, which the others take from the cache
        taken = [train(kind, grid, trial, steps) for trial, steps in ((1, few), (2, many))]
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
    """Choose the rates of each label set, then do all that is reported, seed by seed."""
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
        for side in {grid.source for grid in (form.grid, form.mask_grid) if grid}:
            folder = out / "lists" / labels.name / str(side)
            write_lists(folder, labels, form.shares, short_side=side)
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
        "machine": f"{os.cpu_count()} cores, {form.device}",
        "environment": describe_environment(),
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=1))
    runner = Runner(out, form.workers)
    do_study(runner, studies(programs))
    if runner.failed:
        raise SystemExit(f"{len(runner.failed)} parts failed; the same command tries them again")


if __name__ == "__main__":
    main()
