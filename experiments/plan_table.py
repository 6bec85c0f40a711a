"""Make docs/plan.md: `videomae plan` for every size on four topologies, a minute or more each.

python experiments/plan_table.py [SIZE@TOPOLOGY ...]

Resumes: the rows that docs/plan.json has are not compiled again. The rows of TPUs need the extra
plan-tpu, those of GPUs plan-gpu. After a change of the model, delete docs/plan.json first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from videomae_jax.diagnostics.environment import describe_environment

ROOT = Path(__file__).parent.parent
SIZES = {"s": "s,k400", "b": "b,k400", "l": "l,k400", "h": "h,k400", "g": "g,k400,v2"}
TOPOLOGIES = ("v5e-64", "v5p-128", "v6e-256", "h100-8x2")
BATCH, EXAMPLES = 1024, 240_000
HEADER = f"""# What the recipes need

Compiled ahead of time, without the devices, by `videomae plan`; nothing here ran. Pre-training on
16 x 224 x 224 clips at a batch of {BATCH:,}, decoders as in the recipes (g: V2's dual masking).
Bytes are of one device. Floors are those of data sheets, that of computing with what
`run.remat full` computes again; the step is an estimate that assumes 40 % of the peak and overlaps
nothing; the run is one of {EXAMPLES:,} videos. What does not fit has the first change that makes it
fit: a batch in more and more parts (`accumulation`), then recomputing (`run.remat`); else a state
split over 2, 4, ... devices (`mesh.fsdp`), by itself, with recomputing, and in parts. The blocks
are a loop (`run.scan`), which compiles in a fraction of the time; unrolled, as the recipes run,
bytes and collectives can differ a little. A row is one command:

```
videomae plan --config=pretrain:b,k400 --config.batch_size={BATCH} \\
    --config.run.scan=True --topology v5e-64 --examples {EXAMPLES}
```

`python experiments/plan_table.py` makes the rows that are missing, and this page.

| size | topology | needs / has, GB | fits with | TFLOP a step | sent, MB | floors, ms: compute, \
memory, network | step, ms | run, days |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="SIZE@TOPOLOGY", help="(default: all)")
    order = [f"{size}@{name}" for name in TOPOLOGIES for size in SIZES]
    wanted = parser.parse_args().rows or order
    file = ROOT / "docs/plan.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    for key in wanted:
        if key not in rows:
            rows[key] = run(*key.split("@"))
            file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [line(key, rows[key]) for key in order if key in rows]
    missing = [key for key in order if key not in rows]
    commits = sorted({rows[key]["commit"] for key in order if key in rows})
    text = HEADER + "\n".join(lines) + f"\n\nCompiled at commit {', '.join(commits)}.\n"
    if missing:
        text += f"\nNot compiled yet: {', '.join(missing)}.\n"
    (ROOT / "docs/plan.md").write_text(text)


def run(size: str, topology: str) -> dict:
    """Compile one row, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "videomae_jax.cli", "plan", f"--topology={topology}"]
        command += [f"--config=pretrain:{SIZES[size]}", f"--json={result}"]
        command += [f"--examples={EXAMPLES}", f"--config.batch_size={BATCH}"]
        command += ["--config.run.scan=True"]
        subprocess.run(command, check=True, cwd=ROOT)
        return {"commit": describe_environment()["commit"], **json.loads(result.read_text())}


def line(key: str, row: dict) -> str:
    """One row of the table; of the change that fits, where the recipe does not."""
    size, topology = key.split("@")
    fits = "as it is"
    if not row["fits"]:
        if not row["would_fit"]:
            fits = f"nothing tried (needs {row['needed'] / 1e9:.1f} GB)"
        else:
            change = ", ".join(f"{k} {v}" for k, v in row["would_fit"]["change"].items())
            fits = f"{change} (else {row['needed'] / 1e9:.1f} GB)"
            row = row | row["would_fit"]
    cells = [f"ViT-{size}", topology, f"{row['needed'] / 1e9:.1f} / {row['capacity'] / 1e9:.1f}"]
    devices = row["mesh"]["data"] * row["mesh"]["fsdp"] * row["mesh"]["tensor"]
    cells += [fits, f"{row['flops'] * devices / 1e12:.0f}"]
    if row["step_seconds"] is None:
        return "| " + " | ".join([*cells, "", "", "", ""]) + " |"
    floors = (row[f"{name}_floor"] for name in ("compute", "memory", "network"))
    days = row["steps"] * row["step_seconds"] / 86400
    cells += [
        f"{sum(c['bytes'] for c in row['collectives']) / 1e6:.0f}",
        ", ".join(milliseconds(floor) for floor in floors),
        milliseconds(row["step_seconds"]),
        f"{days:.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


def milliseconds(seconds: float) -> str:
    """Write seconds in ms, three digits of them, whole from a thousand on."""
    ms = 1e3 * seconds
    return f"{ms:.3g}" if ms < 999.5 else f"{ms:,.0f}"


if __name__ == "__main__":
    main()
