"""Run `videomae` commands once each, and keep what they took."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue


def flags(recipe: str, *changes: dict[str, object]) -> list[str]:
    """Return the options of `videomae train` for a recipe and changes to it; the last one wins."""
    merged = {key: value for change in changes for key, value in change.items()}
    return [f"--config={recipe}", *(f"--config.{key}={value}" for key, value in merged.items())]


def videomae(
    out: Path, name: str, *command: str, device: str = "cpu", afresh: bool = False
) -> dict[str, float]:
    """Run a command unless it has been. What it prints goes into the log of the folder `name`.

    device: "gpu" shares the GPU with other commands. afresh: where it was stopped, begin again
    instead of resuming. Returns {"seconds", "cpu_seconds", "gigabytes"}: its wall time, its CPU
    time and its largest memory.
    """
    folder = out / name
    key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:12]
    done = folder / f"{command[0]} {key}.json"
    if not done.exists():
        if afresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"JAX_PLATFORMS": "cpu"}
        if device == "gpu":
            settings = {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}
        began = time.time()
        with open(folder / "log.txt", "a") as log:
            log.write(f"videomae {shlex.join(command)}\n")
            log.flush()
            program = [str(Path(sys.executable).with_name("videomae")), *command]
            environment = os.environ | settings | cache
            process = subprocess.Popen(program, stdout=log, stderr=log, env=environment)
            with _own_core(process.pid) if device == "cpu" else nullcontext():
                _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"exit code {code} of videomae {command[0]}: see {folder}/log.txt")
        taken = {
            "seconds": time.time() - began,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "gigabytes": usage.ru_maxrss * 1024 / 1e9,
        }
        done.write_text(json.dumps(taken))
        print(f"{time.strftime('%H:%M:%S')}  {name}: {command[0]}", flush=True)
    return json.loads(done.read_text())


_cores: SimpleQueue[int] = SimpleQueue()  # those that no command has
if hasattr(os, "sched_getaffinity"):  # macOS has no affinity
    for _core in os.sched_getaffinity(0):
        _cores.put(_core)


@contextmanager
def _own_core(process: int) -> Iterator[None]:
    """Keep a process that has just begun on one core, and other processes of this context off it.

    Two commands side by side use two cores better than one command does. With more cores, threads
    that wait for each other would count as CPU time. Does nothing where there is no affinity.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    core = _cores.get()
    os.sched_setaffinity(process, {core})
    try:
        yield
    finally:
        _cores.put(core)
