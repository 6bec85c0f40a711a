"""The parts of a study that run side by side, and the choice of the rates."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.study.forms import LONG, MOCO, SCRATCH, STUDENT, TAUGHT, UNTRAINED, VIDEOMAE, Form
from experiments.study.lists import share_name
from experiments.study.runs import Study


class Job(NamedTuple):
    """Some runs, one after the other, that need no other job. work: returns rows of results."""

    name: str
    work: Callable[[], list[dict[str, Any]]]


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
        tuned = study.classify(arm, rate, seed, **common, controls=arm == VIDEOMAE)
        rows = [start.row, tuned]
        if form.student and arm == VIDEOMAE:
            rows += students(teacher=tuned["workdir"])
        if form.probe:
            rows += study.features(arm, start)
        if form.probe and seed == 0 and arm == VIDEOMAE:
            row = dict(labels=study.labels.name, arm=UNTRAINED, seed=seed, pretrain=0)
            rows.append(row | study.neighbours(start, "--untrained"))
        for share in form.shares:
            row = study.classify(arm, rate, seed, **common, train=share_name(share))
            rows.append(row | {"share": share})
        return rows

    def students(teacher: Path) -> list[dict[str, Any]]:
        rate, seconds = rates[SCRATCH][1], form.student
        return [
            study.classify(STUDENT, rate, seed, seconds=seconds),
            study.classify(TAUGHT, rate, seed, seconds=seconds, teacher=teacher),
        ]

    def scratch(arm: str, seconds: float, shares: tuple[float, ...]) -> list[dict[str, Any]]:
        rate = rates[arm][1]
        rows = [study.classify(arm, rate, seed, seconds=seconds)]
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
    yield Job(f"{where}, {LONG}", functools.partial(scratch, LONG, seconds, form.shares))
    yield Job(f"{where}, {SCRATCH}", functools.partial(scratch, SCRATCH, form.finetune, ()))
    if form.contrast:
        yield Job(f"{where}, {MOCO}", functools.partial(pretrained, MOCO))
    for mask in form.masks:
        yield Job(f"{where}, mask {mask[0]} {mask[1]:g}", functools.partial(masked, mask))
    for seconds in form.curve[:-1]:
        yield Job(f"{where}, {seconds:g} s", functools.partial(shorter, seconds))
