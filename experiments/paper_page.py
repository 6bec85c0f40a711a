"""Make docs/paper.md: the rows of the paper's tables, their costs and the commands of all runs.

python experiments/paper_page.py

A test compares the page with its source, `videomae_jax/diagnostics/paper_tables.py`.
"""

from pathlib import Path

from videomae_jax.diagnostics import paper
from videomae_jax.diagnostics.paper_tables import TABLES

ROOT = Path(__file__).parent.parent
HEADER = """# The paper as commands

Every number of the tables of VideoMAE ([2203.12602](https://arxiv.org/abs/2203.12602), version 3),
the commands that compute it here, and what they cost. `videomae paper` prints the same. **Nothing
of it was run here at this size**; the line under each title says what was run instead.

```
videomae paper                    # the tables
videomae paper masks              # the rows of one
videomae paper masks tube-75-ssv2 # the commands of a row, in order
```

{counts}

How to read the rows:

- *Published*: read in a text copy of the paper, and, for VideoMAE's rows of the main tables, in
  the README of its repository too, where they are the same. Only the size of Kinetics-700 is from
  memory.
- *Recipe*: where its numbers were read. *Released scripts* are those of the authors; where they
  differ from the *paper's appendix* (batch of pre-training, epochs of ViT-L, magnitude of
  RandAugment, flips in pre-training), the recipe has those of the scripts. *Unverified* rows need
  a choice that nobody has published. Ablations are the script for 800 epochs with the change that
  the paper names.
- *EFLOP*: 1e18 operations of all trainings and the evaluation of a row, in closed form
  (`models/flops.py`), from the config of each command, its clips and epochs; a multiply-add counts
  as two. Starts from image models are not counted.
- *H100-hours*: these divided by {peak:.0f} TFLOP/s and by the fraction of this peak that was
  measured on one H200, whose peak is the same ([performance.md](performance.md#on-a-gpu)):
  pre-training 0.25 for ViT-S, 0.35 B, 0.41 L, 0.42 H; everything else {mfu:g}, that of ViT-B
  fine-tuning, the only one measured. Several GPUs and real videos will be slower.
- *Videos*: how many times a video is opened and decoded, in millions. A video gives all its clips
  of a step, or all its test views, from one decode. Evaluations during training are not counted.

Data sets have the sizes that the paper gives: {sizes}.

In commands, $DATA has a folder for each data set, $WEIGHTS image models of others, $WORK is for
lists and work directories, and $VIDEO is any video. Runs that several rows share are trained once.
`videomae data pack` makes reading faster ([data.md](data.md#pack-videos)): then train on the
packed records instead of the list.
"""


def text() -> str:
    """Return the page."""
    sizes = ", ".join(f"{name} {data.train:,}" for name, data in paper.DATASETS.items())
    parts = [HEADER.format(counts=counts(), peak=paper.PEAK / 1e12, mfu=paper.MFU, sizes=sizes)]
    for name, table in TABLES.items():
        parts += [
            f"## {table.title}",
            f"{table.where}; `videomae paper {name}`. Run here: {table.ran}.",
        ]
        parts.append("\n".join(table_lines(table)))
    return "\n\n".join(part.strip() for part in [*parts, commands()]) + "\n"


def counts() -> str:
    """Return how many rows there are, by what is known of them."""
    rows = [row for table in TABLES.values() for row in table.rows]
    ready = [row for row in rows if row.runs]
    doubtful = sum(paper.source_of(row).startswith(paper.UNVERIFIED) for row in ready)
    others = sum(row.note == "another method" for row in rows)
    runs = {run.name for row in ready for run in paper.chain(row.runs)}
    return (
        f"Of {len(rows)} rows, {len(ready)} have commands, {len(ready) - doubtful} of them with "
        f"recipes that were read and {doubtful} with something unverified; they share {len(runs)} "
        f"trainings. {others} are numbers of other methods, and {len(rows) - len(ready) - others} "
        "have no command here; the row says why."
    )


def table_lines(table: paper.Table) -> list[str]:
    """Return the lines of a table; without costs if none of its rows has commands."""
    if not any(row.runs for row in table.rows):
        return ["| row | published |", "|---|---|"] + [
            f"| {row.name} | {published(row)} |" for row in table.rows
        ]
    head = [
        "| row | published | EFLOP | H100-hours | videos, M | recipe |",
        "|---|---|---|---|---|---|",
    ]
    return head + [row_line(row) for row in table.rows]


def row_line(row: paper.Row) -> str:
    """Return the line of a row, with its cost if it has commands."""
    cells = [row.name, published(row)]
    if not row.runs:
        return "| " + " | ".join([*cells, "", "", "", row.note]) + " |"
    cost = paper.row_cost(row)
    cells += map(digits, (cost.flops / 1e18, cost.hours, cost.decoded / 1e6))
    recipe = "; ".join(filter(None, [paper.source_of(row), row.note]))
    return "| " + " | ".join([*cells, recipe]) + " |"


def digits(number: float) -> str:
    """Write three digits of a number, whole from a hundred on."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def published(row: paper.Row) -> str:
    """Return the published numbers of a row."""
    return ", ".join(f"{name} {number:g}" for name, number in row.published.items())


KINDS = {
    "Lists": "videomae data list",
    "Image models": "videomae convert",
    "Pre-training": "videomae train --config=pretrain",
    "MoCo v3": "videomae train --config=contrast",
    "Fine-tuning": "videomae train --config=finetune",
    "Linear probes": "videomae train --config=probe",
    "Detection": "videomae train --config=detect",
    "Evaluation": "videomae evaluate",
    "Reconstructions": "videomae visualize",
}


def commands() -> str:
    """Return all commands, each once, by kind."""
    rows = [row for table in TABLES.values() for row in table.rows]
    every = list(dict.fromkeys(line for row in rows for line in paper.row_commands(row)))
    parts = ["## All commands", "`videomae paper TABLE ROW` prints those of one row, in order."]
    for title, start in KINDS.items():
        lines = [line for line in every if line.startswith(start)]
        parts += [f"### {title}", "\n".join(["```", *lines, "```"])]
    return "\n\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs/paper.md").write_text(text())
