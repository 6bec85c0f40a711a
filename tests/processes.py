"""Run `videomae train` on tiny models and real clips, in processes of its own or struck midway."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from runs import ROOT, losses

from videomae_jax import cli
from videomae_jax.training.checkpoint import Checkpoints

HEARTBEAT = 10  # seconds
SMALL = [
    *runs.SMALL,
    "--config.data.eval=",
    "--config.data.holdout=0",
    f"--config.heartbeat_seconds={HEARTBEAT}",
]
# Nothing here takes as long, on a machine that does nothing else; then processes are ended.
LIMIT = 280


def write_manifest(folder: Path) -> str:
    """Write a manifest of sixteen of the demo's clips, and return the flag that names it."""
    kinds = sorted((ROOT / "data/mocap_studio/train").iterdir())[:4]
    rows = [str(path) for kind in kinds for path in sorted(kind.iterdir())[:4]]
    (folder / "train.csv").write_text("\n".join(rows))
    return f"--config.data.train={folder}/train.csv"


def train_struck(workdir, folder: Path, happen, monkeypatch) -> int:
    """Train for 8 steps in this process, which must end it; return the exit code.

    happen: called after the save of step 4 and before that of step 8. folder: for the list.
    """
    save = Checkpoints.save

    def save_and_strike(self, step, *args):
        if step > 4:
            happen()
        save(self, step, *args)
        if step == 4:
            self.wait()

    monkeypatch.setattr(Checkpoints, "save", save_and_strike)
    more = [write_manifest(folder), "--config.steps=8", "--config.save_every=4"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", f"--workdir={workdir}", *SMALL, *more])
    return stopped.value.code


@contextlib.contextmanager
def training(
    workdir: Path, *more: str, count: int, devices: int, program: str | None = None
) -> Iterator[list[subprocess.Popen]]:
    """Start `count` processes that train together; whatever still runs at the end is killed.

    devices: of each. program: Python code that calls `cli.main`, instead of the command alone.
    Standard output and error go to WORKDIR.INDEX.log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),  # as launch/env.sh does
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in less time
    }
    command = [
        sys.executable,
        "-c",
        program or "import sys; from videomae_jax import cli; cli.main(sys.argv[1:])",
    ]
    command += ["train", f"--workdir={workdir}", *SMALL, *more, f"--processes={count}"]
    running = []
    try:
        for index in range(count):
            place = [f"--coordinator=127.0.0.1:{port}", f"--process-id={index}"]
            with log(workdir, index).open("a") as output:
                running.append(
                    subprocess.Popen(
                        command + place * (count > 1),
                        cwd=ROOT,
                        env=environment,
                        stdout=output,
                        stderr=output,
                    )
                )
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()


def log(workdir: Path, index: int = 0) -> Path:
    """The file with all that a process printed."""
    return workdir.parent / f"{workdir.name}.{index}.log"


def codes(running: list[subprocess.Popen], *, seconds: float = LIMIT) -> list[int]:
    """Wait for all and return their exit codes as a shell has them: 128 + N for signal N."""
    deadline = time.monotonic() + seconds
    ended = [process.wait(timeout=max(0.1, deadline - time.monotonic())) for process in running]
    return [128 - code if code < 0 else code for code in ended]


def train(workdir: Path, *more: str, count: int, devices: int) -> None:
    """Train to the end."""
    with training(workdir, *more, count=count, devices=devices) as running:
        assert codes(running) == [0] * count, log(workdir).read_text()


def wait_for_step(workdir: Path, step: int, running: list[subprocess.Popen]) -> None:
    """Wait until a step is in the log."""
    deadline = time.monotonic() + LIMIT
    while f"step {step:,}/" not in log(workdir).read_text():
        assert time.monotonic() < deadline and all(p.poll() is None for p in running)
        time.sleep(0.02)


def values(workdir: Path) -> list[float]:
    """Every step's loss."""
    return [float.fromhex(loss) for loss, _ in losses(workdir).values()]


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def end(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to a process of ours that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
