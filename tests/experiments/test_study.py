"""The study: every form runs to its end on commands that only pretend, and claims are decided."""

import dataclasses
import json

import pytest

from experiments.commands import videomae
from experiments.study import claims, report, run
from experiments.study.forms import FORMS, LONG, MOCO, VIDEOMAE
from experiments.study.jobs import choose_rates
from experiments.study.lists import SETS
from experiments.study.runs import RECIPES, Rehearsal, Study, step_key
from videomae_jax.config import load_config


class Pretend(Rehearsal):
    """Keeps the options of every training."""

    def __init__(self, start):
        super().__init__(start)
        self.options = {}

    def train(self, name, options, **given):
        self.options.setdefault(tuple(options), name)
        return super().train(name, options, **given)


def do(form, commands, out, *, keep=False):
    grids = (form.grid, form.mask_grid or form.grid)
    step_seconds = {step_key(kind, grid): 0.01 for kind in RECIPES for grid in grids}
    runner = run.Runner(out, 1)
    studies = [
        Study(form, labels, commands, out / labels.name, out, step_seconds)
        for labels in SETS.values()
    ]
    run.do_study(runner, studies, keep=keep)
    assert runner.failed == []


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_options_that_the_recipes_know(name, tmp_path):
    commands = Pretend(1.0)
    do(FORMS[name], commands, tmp_path)
    run.measure(FORMS[name], tmp_path, commands)
    seen = set()
    for options in commands.options:
        keys = tuple(option.split("=")[0] for option in options)
        if (options[0], keys) in seen:
            continue
        seen.add((options[0], keys))
        config = load_config(options[0].removeprefix("--config="), options[1:])
        assert config.clip.frames == 16
    assert commands.seconds > 0


def test_a_command_that_was_stopped_can_start_afresh(tmp_path):
    left = tmp_path / "help/left"
    left.parent.mkdir()
    for kept in (False, True):  # the second time the command has been run
        left.touch()
        videomae(tmp_path, "help", "--help", afresh=True)
        assert left.exists() == kept


def test_the_report_of_results(tmp_path):
    form = dataclasses.replace(FORMS["micro"], seeds=2)
    do(form, Rehearsal(1.0), tmp_path, keep=True)
    rows = report.read_results(tmp_path / "results.csv")
    assert {row["labels"] for row in rows} == set(SETS)
    facts = {
        "form": "micro",
        "settings": {"curve": form.curve, "finetune": form.finetune, "rates": form.rates},
        "step_seconds": {step_key(kind, form.grid): 0.01 for kind in RECIPES},
        "estimated_minutes": 1.0,
        "machine": "m",
        "environment": {"commit": "c", "python": "3", "jax": "1", "flax": "2", "date": "d"},
    }
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    text = "\n".join(report.report_lines(rows, facts))
    assert text.count(claims.UNKNOWN) > 8  # every accuracy is the same
    assert f"| {MOCO} | 2 | 50.0 [50.0, 50.0] |" in text
    report.draw(rows, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


def row(arm, seed, top1, **more):
    common = dict(labels="actions", measure="fine-tuned", share=1.0, mask="", pretrain=0.0)
    return common | dict(arm=arm, seed=seed, top1=top1) | more


EQUAL_TIME, FEW_LABELS = (claim for claim in claims.CLAIMS if "same total time" in claim.text)


def test_a_claim_is_decided_by_the_interval_of_the_difference():
    def verdict(ours, others):
        rows = [row(VIDEOMAE, seed, score, pretrain=9.0) for seed, score in enumerate(ours)]
        rows += [row(VIDEOMAE, seed, 0.0, pretrain=1.0) for seed in range(3)]
        rows += [row(LONG, seed, score) for seed, score in enumerate(others)]
        few = [each | {"share": 0.1, "top1": 1 - each["top1"]} for each in rows if each["top1"]]
        few_labels = FEW_LABELS.measure(rows + few, "actions")
        equal_time = EQUAL_TIME.measure(rows + few, "actions")
        assert few_labels.mean == pytest.approx(-equal_time.mean)
        return equal_time.verdict

    assert verdict([0.30, 0.32, 0.31], [0.20, 0.21, 0.22]) == claims.HOLDS
    assert verdict([0.20, 0.21, 0.22], [0.30, 0.32, 0.31]) == claims.FAILS
    assert verdict([0.10, 0.40, 0.31], [0.20, 0.21, 0.22]) == claims.UNKNOWN
    assert verdict([0.5], [0.1]) == claims.UNKNOWN
    for claim in (EQUAL_TIME, FEW_LABELS):
        assert claim.measure([row(VIDEOMAE, 0, 0.5)], "actions") is None


def test_intervals_are_those_of_the_t_distribution():
    # By hand: t(0.975, 4) = 2.776; deviation 1, five values.
    interval = claims.mean_interval([0.0, 1.0, 2.0, 1.0, 1.0])
    assert interval.mean == 1.0
    assert interval.high - 1.0 == pytest.approx(2.776 * 0.5**0.5 / 5**0.5, rel=1e-3)
    welch = claims.difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert welch.mean == 2.0  # equal variances and sizes: freedom is 4
    assert welch.high - 2.0 == pytest.approx(2.776 * (2 / 3) ** 0.5, rel=1e-3)
    assert claims.bar([row(VIDEOMAE, 0, 0.4), row(VIDEOMAE, 1, 0.6)], "actions", 1.0) is None


def test_the_rate_with_the_best_score_is_chosen():
    rows = [
        dict(arm=VIDEOMAE, rate=rate, pretrain_rate=first, top1=score)
        for first, rate, score in ((5e-4, 7e-4, 0.2), (5e-4, 2e-3, 0.3), (2e-3, 7e-4, 0.25))
    ]
    best = choose_rates(FORMS["full"], rows)
    assert best[VIDEOMAE] == (5e-4, 2e-3)
    assert best[MOCO] == (FORMS["full"].pretrain_rates[MOCO][0], FORMS["full"].rates[MOCO][0])
