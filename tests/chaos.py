"""Kill or stop a run of two processes at random moments, again and again, then let it finish.

    python tests/chaos.py WORKDIR [--moments 5] [--seed 0] [--json FILE]

It must equal, bit for bit, a run that nobody touched; and a copy of it that one process ends on
another mesh must equal it to 1e-6. Runs of several seeds share a WORKDIR.
"""

import argparse
import collections
import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from processes import (
    codes,
    end,
    log,
    losses,
    saved_steps,
    train,
    training,
    values,
    write_manifest,
)

from videomae_jax.training.checkpoint import digests, load_params

STEPS = 24
HOW = dict(count=2, devices=1)
# Devices of the process that ends the copy, and their mesh; the seed chooses.
OTHERS = ((1, "fsdp=1"), (4, "fsdp=4"), (4, "tensor=2"))
KINDS = ("SIGTERM to one", "SIGKILL to one", "SIGKILL to both")
MOMENTS = ("start", "step", "save")


def torment(folder: Path, *, moments: int, seed: int) -> collections.Counter:
    """Return how often the two ended how, e.g. {"SIGKILL to both in save: 137 137": 3}.

    Raises AssertionError where a code is not in the contract or a result differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw, seen = random.Random(seed), collections.Counter()
    more = [write_manifest(folder), f"--config.steps={STEPS}", "--config.save_every=3"]
    straight, workdir = folder / "straight", folder / f"tormented-{seed}"
    if steps_saved(straight) != STEPS:
        train(straight, *more, **HOW)
    for _ in range(moments):
        kind, during = draw.choice(KINDS), draw.choice(MOMENTS)
        number = signal.SIGTERM if "TERM" in kind else signal.SIGKILL
        # No step further than one or two, or the run would be over before the last moment.
        chosen, delay = draw.randrange(2), draw.random() * (4.0 if during == "start" else 0.05)
        with training(workdir, *more, **HOW) as running:
            struck = wait_for(during, workdir, running)
            time.sleep(delay)
            for process in running if "both" in kind else [running[chosen]]:
                end(process, number)
            ended = codes(running)
        what = f"{kind} in {during if struck else 'end'}: {ended[0]} {ended[1]}"
        seen[what] += 1
        said = "".join(log(workdir, index).read_text()[-3000:] for index in range(2))
        # 143: before its handler stood, a signal ends a process as it ends any.
        assert set(ended) <= {0, 42, 134, 137, 143}, f"{what} (process {chosen})\n{said}"
        assert (0 in ended) == (ended == [0, 0]), f"{what}\n{said}"
        assert (42 in ended) <= (ended == [42, 42]), f"{what}\n{said}"
    half_way = steps_saved(workdir)
    devices, mesh = OTHERS[seed % len(OTHERS)]
    other = folder / f"other-{seed}"
    if workdir.exists():
        shutil.copytree(workdir, other)
    train(other, *more, f"--config.mesh.{mesh}", count=1, devices=devices)
    np.testing.assert_allclose(values(other), values(straight), rtol=1e-6)
    train(workdir, *more, **HOW)
    assert f"going on from step {half_way}" in log(workdir).read_text() or not half_way
    assert losses(workdir) == losses(straight)
    assert steps_saved(workdir) == STEPS
    ours, theirs = (load_params(str(path))[0] for path in (workdir, straight))
    assert digests(ours) == digests(theirs)
    return seen


def steps_saved(workdir: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max(saved_steps(workdir), default=0) if (workdir / "checkpoints").exists() else 0


def wait_for(during: str, workdir: Path, running: list) -> bool:
    """Wait for a moment of this start; returns whether it came before the end."""
    printed = log(workdir).stat().st_size
    folder = workdir / "checkpoints"
    while all(process.poll() is None for process in running):
        said = log(workdir).read_bytes()[printed:].decode()
        stepped = "\nstep " in said
        if during == "start" and said or during == "step" and stepped:
            return True
        # What the start before left half done is gone by the first step.
        if during == "save" and stepped and any("tmp" in p.name for p in folder.iterdir()):
            return True
        time.sleep(0.002)
    return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--moments", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts here")
    args = parser.parse_args()
    counts = torment(args.workdir, moments=args.moments, seed=args.seed)
    for what, times in sorted(counts.items()):
        print(f"{times:4}  {what}")
    if args.json:
        args.json.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
