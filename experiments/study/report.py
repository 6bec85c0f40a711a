"""Write the report of a study from its results, at any time during it.

    .venv/bin/python -m experiments.study.report DIR [--to docs/study]

DIR: the folder of `experiments.study.run`. Writes FORM.md and FORM.png, and a copy of results.csv,
FORM.csv, into --to, by default DIR.
"""

import argparse
import csv
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.study import claims
from experiments.study.claims import CLAIMS, UNKNOWN, Interval, Rows, mean_interval, scores, select
from experiments.study.forms import LONG, MOCO, SCRATCH, STUDENT, TAUGHT, UNTRAINED, VIDEOMAE
from experiments.study.lists import CONTROLS, SETS, LabelSet

ARMS = (VIDEOMAE, MOCO, LONG, SCRATCH)
TEXTS = ("labels", "arm", "measure", "mask")


def read_results(file: Path) -> Rows:
    """Return the rows of results.csv; empty numbers are left out."""
    with open(file, newline="", encoding="utf-8") as table:
        return [
            {
                key: value if key in TEXTS else float(value)
                for key, value in row.items()
                if value or key in TEXTS
            }
            for row in csv.DictReader(table)
        ]


def percent(interval: Interval, *, sign: str = "") -> str:
    """Return "mean [low, high]" in %."""
    if math.isnan(interval.low):
        return f"{100 * interval.mean:{sign}.1f}"
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def cell(rows: Rows, column: str = "top1") -> str:
    """Return the mean of the seeds with its interval, or a dash."""
    values = scores(rows, column)
    return percent(mean_interval(values)) if values else "-"


def sets_of(rows: Rows) -> list[LabelSet]:
    """Return the label sets that were run."""
    return [labels for name, labels in SETS.items() if any(row["labels"] == name for row in rows)]


def report_lines(rows: Rows, facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    found, settings = facts["environment"], facts["settings"]
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", "jax", "flax"))
    tried = (f"{arm} {' or '.join(map(str, rates))}" for arm, rates in settings["rates"].items())
    yield f"`make study FORM={facts['form']}` of {found['commit']}: {facts['machine']}, {versions},"
    yield f"{found['date']}; estimated at {facts['estimated_minutes']:.0f} minutes. Top-1 on the"
    yield "validation clips in %: mean of n seeds [95 % t interval over the seeds]. Times are"
    yield f"seconds of one core, or of the GPU. Pre-training {settings['curve'][-1]:g} s,"
    yield f"fine-tuning {settings['finetune']:g} s; {LONG}: both. Learning rates of classifiers, of"
    yield f"several the best on a quarter of the training clips: {', '.join(tried)}."
    for labels in sets_of(rows):
        yield ""
        yield f"## {labels.name.capitalize()}, chance {100 / labels.classes:.1f} %"
        yield ""
        yield from main_table(rows, labels.name)
        yield from curve_table(rows, labels.name)
        yield from share_table(rows, labels.name)
        yield from mask_table(rows, labels.name)
        yield from cost_table(rows, labels.name, facts["step_seconds"])
    yield ""
    yield "## Claims"
    yield ""
    yield "An interval of the difference above zero: holds here. Below: does not hold here. Else,"
    yield "or if it was not run: cannot be told here."
    yield ""
    yield from claim_table(rows)
    yield ""
    yield from bar_lines(rows)


def main_table(rows: Rows, labels: str) -> Iterator[str]:
    """Yield the table of the arms, with the controls and the frozen encoders."""
    controls = " | ".join(f"{control} frames" for control in CONTROLS)
    yield f"| arm | n | fine-tuned | {controls} | linear | kNN |"
    yield "|---|---|---|---|---|---|---|"
    for arm in (*ARMS, UNTRAINED, STUDENT, TAUGHT):
        tuned = select(rows, labels, arm)
        cells = [cell(tuned), *(cell(tuned, control) for control in CONTROLS)]
        cells += [cell(select(rows, labels, arm, measure)) for measure in ("linear", "kNN")]
        if set(cells) != {"-"}:
            yield f"| {arm} | {len(tuned) or '-'} | {' | '.join(cells)} |"


def curve_table(rows: Rows, labels: str) -> Iterator[str]:
    """Yield the fine-tuned accuracy by the length of pre-training."""
    lengths = claims.curve(rows, labels)
    if len(lengths) > 1:
        yield ""
        yield f"| pre-training, s | {' | '.join(f'{length:g}' for length in lengths)} |"
        yield "|---" * (len(lengths) + 1) + "|"
        cells = [percent(mean_interval(values)) for values in lengths.values()]
        yield f"| fine-tuned | {' | '.join(cells)} |"
        values = list(lengths.values())
        last = claims.difference(values[-1], values[-2])
        yield ""
        yield f"The last step of the curve: {percent(last, sign='+')} points."


def share_table(rows: Rows, labels: str) -> Iterator[str]:
    """Yield the fine-tuned accuracy by the share of the labels."""
    shares = sorted({row["share"] for row in rows}, reverse=True)
    if len(shares) > 1:
        yield ""
        yield f"| labels | {' | '.join(f'{100 * share:g} %' for share in shares)} |"
        yield "|---" * (len(shares) + 1) + "|"
        for arm in (VIDEOMAE, MOCO, LONG):
            cells = [cell(select(rows, labels, arm, share=share)) for share in shares]
            if set(cells) != {"-"}:
                yield f"| {arm} | {' | '.join(cells)} |"


def mask_table(rows: Rows, labels: str) -> Iterator[str]:
    """Yield the fine-tuned accuracy by the mask of pre-training."""
    masks = sorted({row["mask"] for row in rows} - {""})
    if masks:
        yield ""
        yield f"| mask | {' | '.join(masks)} |"
        yield "|---" * (len(masks) + 1) + "|"
        cells = [cell(select(rows, labels, VIDEOMAE, mask=mask)) for mask in masks]
        yield f"| fine-tuned | {' | '.join(cells)} |"


def cost_table(rows: Rows, labels: str, step_seconds: dict[str, float]) -> Iterator[str]:
    """Yield the table of what the runs of each kind took. step_seconds: of `run.measure`."""
    yield ""
    yield "| run | rate | steps | ms a step | CPU minutes, with start-up | memory, GB |"
    yield "|---|---|---|---|---|---|"
    kinds = {("pre-training", VIDEOMAE): "pretrain", ("pre-training", MOCO): "contrast"}
    kinds |= {("fine-tuned", arm): "classify" for arm in ARMS}
    kinds |= {("fine-tuned", STUDENT): "student", ("fine-tuned", TAUGHT): "taught"}
    for (measure, arm), kind in kinds.items():
        found = select(rows, labels, arm, measure)
        if found:
            row, memory = found[0], max(row["gigabytes"] for row in found)
            minutes = sum(row["cpu_seconds"] for row in found) / len(found) / 60
            step = next(value for key, value in step_seconds.items() if key.startswith(f"{kind} "))
            yield (
                f"| {measure}, {arm} | {row['rate']:g} | {row['steps']:.0f} | {1000 * step:.0f} | "
                f"{minutes:.1f} | {memory:.2f} |"
            )


def claim_table(rows: Rows) -> Iterator[str]:
    """Yield the table of the claims."""
    yield f"| claim | paper, % | {' | '.join(f'{name}, points' for name in SETS)} |"
    yield "|---" * (len(SETS) + 2) + "|"
    for claim in CLAIMS:
        cells = []
        for labels in SETS:
            interval = claim.measure(rows, labels)
            if interval is None:
                cells.append(f"{UNKNOWN}: not run")
            else:
                cells.append(f"{interval.verdict}: {percent(interval, sign='+')}")
        yield f"| {claim.text} | {claim.published} | {' | '.join(cells)} |"


def bar_lines(rows: Rows) -> Iterator[str]:
    """Yield whether the gain of pre-training is twice the spread of the seeds, by share."""
    for labels in SETS:
        for share in sorted({row["share"] for row in rows}, reverse=True):
            gain = claims.bar(rows, labels, share)
            if gain is not None:
                word = "at least" if gain >= 2 else "less than"
                yield (
                    f"- {labels.capitalize()}, {100 * share:g} % of the labels: pre-training is "
                    f"{gain:+.1f} pooled standard deviations from {LONG}, {word} 2."
                )


def draw(rows: Rows, file: Path) -> None:
    """Draw the arms of each label set with their seeds, and the curve of pre-training if any."""
    from matplotlib.figure import Figure

    sets = sets_of(rows)
    curves = [claims.curve(rows, labels.name) for labels in sets]
    columns = 2 if max(map(len, curves)) > 1 else 1
    figure = Figure(figsize=(5.5 * columns, 3.5 * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), columns, squeeze=False)
    for (left, *right), labels, curve in zip(panels, sets, curves, strict=True):
        groups = {
            arm if share == 1 else f"{arm}, {100 * share:g} % of labels": found
            for share in sorted({row["share"] for row in rows}, reverse=True)
            for arm in ARMS
            if (found := select(rows, labels.name, arm, share=share))
        }
        draw_arms(left, groups)
        left.set(ylabel="top-1, %", title=f"{labels.name}; dots: seeds, dotted: chance")
        for axes in right:
            means = [100 * sum(values) / len(values) for values in curve.values()]
            axes.plot(list(curve), means, "o-", label=f"fine-tuned {VIDEOMAE}")
            for length, values in curve.items():
                axes.plot([length] * len(values), [100 * value for value in values], "k.")
            axes.set(xlabel="pre-training, s", ylabel="top-1, %", xscale="log")
            axes.legend()
        for axes in (left, *right):
            axes.axhline(100 / labels.classes, color="grey", linestyle=":")
    figure.savefig(file, dpi=110)


def draw_arms(axes: Any, groups: dict[str, Rows]) -> None:
    """Draw a bar for each group of rows and control, with its seeds."""
    for offset, column in enumerate(("top1", *CONTROLS)):
        for place, group in enumerate(groups.values()):
            values = [100 * value for value in scores(group, column)]
            if not values:
                continue
            x = place + 0.26 * (offset - 1)
            label = column if place == 0 else None
            axes.bar(x, sum(values) / len(values), 0.24, color=f"C{offset}", label=label)
            axes.plot([x] * len(values), values, ".", color="black", markersize=4)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), [arm.replace(", ", ",\n") for arm in groups])
    axes.legend()


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--to", type=Path, help="(default: DIR)")
    args = parser.parse_args()
    to = args.to or args.folder
    rows = read_results(args.folder / "results.csv")
    facts = json.loads((args.folder / "facts.json").read_text())
    text = "\n".join([f"# The study: {facts['form']}", "", *report_lines(rows, facts)]) + "\n"
    (to / f"{facts['form']}.md").write_text(text)
    draw(rows, to / f"{facts['form']}.png")
    if args.to:
        shutil.copy(args.folder / "results.csv", to / f"{facts['form']}.csv")
    print(text)


if __name__ == "__main__":
    main()
