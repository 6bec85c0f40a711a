"""Time the training step and the same step in PyTorch in turns, each in a process of its own."""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from videomae_jax.diagnostics.step_time import WARM_UP, Job, summarize_steps
from videomae_jax.diagnostics.subprocesses import Child, write_job
from videomae_jax.errors import UserError

# Largest relative difference of the first losses, by dtype; bfloat16 keeps 8 bits.
AGREE = {"float32": 1e-4, "bfloat16": 1e-2}
PACKAGE = Path(__file__).parents[1]


def compare(job: Job, *, peer: str, peer_python: str, repeats: int) -> dict[str, Any]:
    """Time `repeats` steps of a job and of a peer, with the same weights, clips and mask.

    peer: "transformers" or "transformers-compile". peer_python: a Python that has torch and
    transformers. Returns the summary of our steps, that of the peer under "peer", and "ratio", the
    median over the pairs of steps of the peer's time divided by ours. Raises UserError where the
    first losses differ.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder, job)
        ours = [sys.executable, "-m", "videomae_jax.diagnostics.subprocesses", name]
        env = _our_environment()
        with Child("the benchmark", ours, env=env | {"JAX_PLATFORMS": "cpu"}) as writer:
            writer.ask("write")
        with Child("the benchmark", ours, env=env) as child:
            facts = child.ask("start")
            command = _peer_command(job, facts, folder=name, peer=peer, peer_python=peer_python)
            with Child(peer, command, env=_peer_environment()) as other:
                environment = other.ask("start")
                bound = AGREE[facts["dtype"]]
                timed, peer_timed = _take_turns(child, other, steps=WARM_UP + repeats, bound=bound)
                result = summarize_steps(job, facts, child.ask("end"), timed)
                peer_after = other.ask("end")
    peer_seconds = [seconds for seconds, _ in peer_timed[WARM_UP:]]
    median = statistics.median(peer_seconds)
    ratios = [
        theirs / ours for (ours, _), theirs in zip(timed[WARM_UP:], peer_seconds, strict=True)
    ]
    result |= {
        "first_loss": timed[0][1],
        "ratio": statistics.median(ratios),
        "ratio_of_each_pair": ratios,
        "peer": {
            "name": peer,
            "clips_per_second": job.batch / median,
            "ms_per_step": 1e3 * median,
            "ms_of_each_step": [1e3 * seconds for seconds in peer_seconds],
            "first_loss": peer_timed[0][1],
            **peer_after,
        },
    }
    result["environment"] |= environment
    return result


def _our_environment() -> dict[str, str]:
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # leave memory to the peer on the same GPU
    }


def _peer_environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return environment | {"HF_HUB_OFFLINE": "1"}  # all it needs is in the folder


def _peer_command(
    job: Job, facts: dict[str, Any], *, folder: str, peer: str, peer_python: str
) -> list[str]:
    platform = facts["platform"]
    if platform not in ("cpu", "gpu"):
        raise UserError(f"--peer {peer} runs on CPUs and GPUs, not on {platform}")
    script = str(PACKAGE / "diagnostics" / "peer_torch.py")
    device = {"cpu": "cpu", "gpu": "cuda"}[platform]
    mode = peer.partition("-")[2] or "eager"
    return [peer_python, script, folder, job.task, device, facts["dtype"], mode]


def _take_turns(
    ours: Child, theirs: Child, *, steps: int, bound: float
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return (seconds, loss) of each step of both; the one that goes first alternates."""
    timed: list[tuple[float, float]] = []
    peer_timed: list[tuple[float, float]] = []
    for index in range(steps):
        pair = [(ours, timed), (theirs, peer_timed)]
        for child, times in pair if index % 2 else pair[::-1]:
            answer = child.ask("step")
            times.append((answer["seconds"], answer["loss"]))
        if index == 0:
            _check_agreement(timed[0][1], peer_timed[0][1], bound)
    return timed, peer_timed


def _check_agreement(ours: float, theirs: float, bound: float) -> None:
    # Written so that NaN fails.
    if not abs(ours - theirs) <= bound * abs(theirs):
        raise UserError(
            f"the first losses differ, {ours:.7g} here and {theirs:.7g} of the peer: the two do "
            "not compute the same, so their times mean nothing"
        )
