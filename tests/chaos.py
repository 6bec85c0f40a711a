"""Kill or stop a run of two processes at random moments, again and again, until it is done.

    python tests/chaos.py WORKDIR [--moments 50] [--seed 0]

Then it must equal, bit for bit, a run that nobody touched.
"""

import argparse
import collections
import random
import signal
import time
from pathlib import Path

from processes import codes, end, log, losses, saved_steps, train, training, write_manifest

from videomae_jax.training.checkpoint import load_params
from videomae_jax.training.digest import digests

STEPS = 60
HOW = dict(count=2, devices=1)


def torment(folder: Path, *, moments: int, seed: int) -> collections.Counter:
    """Return how often the two ended how, e.g. {"SIGKILL to both: 137 137": 3}; AssertionError
    where a code is not in the contract or the results differ."""
    folder.mkdir(parents=True, exist_ok=True)
    videos, draw, seen = write_manifest(folder), random.Random(seed), collections.Counter()
    more = [videos, f"--config.steps={STEPS}", "--config.save_every=3"]
    train(folder / "straight", *more, **HOW)
    workdir = folder / "tormented"
    for _ in range(moments):
        kind = draw.choice(["SIGTERM to one", "SIGKILL to one", "SIGKILL to both"])
        number = signal.SIGTERM if "TERM" in kind else signal.SIGKILL
        during = draw.choice(["start", "step", "save"])
        # No step further than one or two, or the run would be over before the last moment.
        chosen, delay = draw.randrange(2), draw.random() * (4.0 if during == "start" else 0.05)
        with training(workdir, *more, **HOW) as running:
            struck = wait_for(during, workdir, running)
            time.sleep(delay)
            for process in running if "both" in kind else [running[chosen]]:
                end(process, number)
            ended = codes(running)
        seen[f"{kind} in {during if struck else 'end'}: {ended[0]} {ended[1]}"] += 1
        # 143: before its handler stood, a signal ends a process as it ends any.
        assert set(ended) <= {0, 42, 134, 137, 143}, log(workdir).read_text()[-3000:]
        assert (0 in ended) == (ended == [0, 0]) and (42 in ended) <= (ended == [42, 42])
    train(workdir, *more, **HOW)
    assert losses(workdir) == losses(folder / "straight")
    assert saved_steps(workdir)[-1] == STEPS
    ours, theirs = (load_params(str(path))[0] for path in (workdir, folder / "straight"))
    assert digests(ours) == digests(theirs)
    return seen


def wait_for(during: str, workdir: Path, running: list) -> bool:
    """Wait for a moment of this start; returns whether it came before the end."""
    printed = log(workdir).stat().st_size
    folder = workdir / "checkpoints"
    while all(process.poll() is None for process in running):
        said = log(workdir).read_bytes()[printed:].decode()
        if during == "start" and said:
            return True
        if during == "step" and "\nstep " in said:
            return True
        if during == "save" and folder.is_dir() and any("tmp" in p.name for p in folder.iterdir()):
            return True
        time.sleep(0.002)
    return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for what, times in sorted(torment(args.workdir, moments=args.moments, seed=args.seed).items()):
        print(f"{times:4}  {what}")
