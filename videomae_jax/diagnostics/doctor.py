"""Checks of this machine and of a run; each returns one finding."""

import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from videomae_jax import __version__
from videomae_jax.config import load_recipe
from videomae_jax.data.decode import read_clip
from videomae_jax.data.synthetic import moving_pattern, synthetic_batches
from videomae_jax.data.unreadable import read_reasons
from videomae_jax.devices.host_memory import size_text
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import batch_sharding, make_mesh
from videomae_jax.errors import UserError
from videomae_jax.host import count_cores
from videomae_jax.paths import as_path, exists, is_remote, names, remove, write_whole
from videomae_jax.pictures import write_mp4
from videomae_jax.tasks import pretrain
from videomae_jax.training.goodput import Goodput
from videomae_jax.training.optim import Schedule, make_optimizer, warmup_cosine
from videomae_jax.training.step import jit_steps
from videomae_jax.training.workdir import BAD_VIDEOS, CHECKPOINTS, METRICS, read_metrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "av", "numpy")
DATA_BOUND = 0.2  # fraction of the time waiting for data, from which on the check fails
WRITTEN = 64 * 2**20  # bytes written to measure a disk
FREE = 2 * 2**30  # bytes; with less, a checkpoint may not fit
OVERFIT_STEPS = 150
# The last loss on eight clips must be below this fraction of the first; 0.28 was measured.
OVERFIT_RATIO = 0.5
NETWORK = ("nfs", "cifs", "smb", "lustre", "fuse", "9p", "ceph", "beegfs", "gpfs", "glusterfs")


class Finding(NamedTuple):
    """The result of one check. fine: passed. advice: what to do if it failed."""

    name: str
    fine: bool
    text: str
    advice: str = ""


def examine_machine(folder: str) -> list[Finding]:
    """Check this machine, and the disk of `folder`."""
    return [versions(), devices(), decoder(), disk(folder), overfit()]


def versions() -> Finding:
    """Check that the packages are installed, and list their versions."""
    found, missing = [], []
    for name in PACKAGES:
        # The CPU build of TensorFlow has another name.
        for option in (name, f"{name}-cpu"):
            try:
                found.append(f"{option} {importlib.metadata.version(option)}")
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            missing.append(name)
    python = ".".join(map(str, sys.version_info[:3]))
    text = f"videomae_jax {__version__}, Python {python}, {', '.join(found)}"
    advice = f"not installed: pip install {' '.join(missing)}" if missing else ""
    return Finding("versions", not missing, text, advice)


def devices() -> Finding:
    """Check that JAX uses the accelerators, and that each device computes correctly."""
    kinds = Counter(device.device_kind for device in jax.local_devices())
    text = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    matrix = np.arange(64, dtype=np.float32).reshape(8, 8) % 5
    for device in jax.local_devices():
        product = np.asarray(jax.device_put(matrix, device) @ jax.device_put(matrix, device))
        if (product != matrix @ matrix).any():
            return Finding(
                "devices", False, text, f"{device} computes wrong results: do not use it"
            )
    idle = [
        (path, wheel)
        for path, wheel in (("/dev/nvidia0", "jax[cuda13]"), ("/dev/accel0", "jax[tpu]"))
        if jax.default_backend() == "cpu" and os.path.exists(path)
    ]
    if idle:
        path, wheel = idle[0]
        return Finding("devices", False, text, f'{path} is not used: pip install "{wheel}"')
    return Finding("devices", True, text)


def decoder() -> Finding:
    """Check that a video written here decodes to its frames, and measure the speed."""
    frames = moving_pattern((32, 240, 320, 3), seed=0, index=0)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "pattern.mp4")
        write_mp4(path, frames, fps=24)
        began = time.perf_counter()
        read = read_clip(path, np.arange)
        seconds = time.perf_counter() - began
    if read.shape != frames.shape:
        return Finding("decoder", False, f"{read.shape} of {frames.shape}", "reinstall av")
    error = float(np.abs(read.astype(float) - frames).mean())
    # Lossy compression stays far below this bound; a frame of another time has an error of 60.
    return Finding(
        "decoder",
        error < 20,
        f"H.264 through PyAV, {len(frames) / seconds:,.0f} frames/s of 320x240 per thread, "
        f"mean error {error:.1f} of 255",
        "" if error < 20 else "frames are decoded wrongly: reinstall av",
    )


def disk(folder: str) -> Finding:
    """Check the free space of `folder`, and measure how fast it can be written."""
    if is_remote(folder):
        return _bucket(folder)
    name, kind = "disk", _file_system(folder)
    where = f"{folder} ({kind}{', a network' if kind.startswith(NETWORK) else ''})"
    block = np.random.default_rng(0).bytes(WRITTEN)
    try:
        began = time.perf_counter()
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - began
    except OSError as error:
        return Finding(name, False, where, f"cannot write there: {error.strerror}")
    free = shutil.disk_usage(folder).free
    text = f"{where}: {size_text(free)} free, {size_text(WRITTEN / seconds)}/s written"
    return Finding(name, free > FREE, text, "" if free > FREE else "free space for checkpoints")


def _bucket(folder: str) -> Finding:
    """Measure how fast objects of a bucket can be written."""
    probe = f"{folder}/.doctor"
    block = np.random.default_rng(0).bytes(WRITTEN)
    began = time.perf_counter()
    try:
        write_whole(probe, block)
        seconds = time.perf_counter() - began
        remove(probe)
    except UserError as error:
        return Finding("disk", False, folder, str(error))
    return Finding("disk", True, f"{folder}: {size_text(WRITTEN / seconds)}/s written")


def overfit() -> Finding:
    """Check that the training step overfits eight clips, on one device."""
    began = time.perf_counter()
    shape, steps = (4, 16, 16, 3), OVERFIT_STEPS
    keys = dict(
        batch_size=8,
        clip=dict(frames=shape[0], height=shape[1], width=shape[2]),
        mask=dict(ratio=0.5),
        model=dict(encoder=dict(depth=2), decoder=dict(depth=1)),
    )
    config = load_recipe("pretrain", "tiny,custom").copy_and_resolve_references()
    config.update(keys)
    task = pretrain.build_task(config.lock())
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1, slices=1), jax.local_devices()[:1])
    schedule = Schedule(steps=steps, warmup_steps=10, peak_lr=3e-3, final_lr=1e-4)
    losses = []
    with jax.set_mesh(mesh):
        functions = jit_steps(
            task,
            make_optimizer(config, task),
            warmup_cosine(schedule),
            mesh,
            seed=0,
            accumulation=1,
        )
        state = functions.init()
        batches = synthetic_batches(shape=shape, batch_size=8, seed=0, num_steps=1)
        with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as prefetcher:
            batch = next(prefetcher)
        for _ in range(steps):
            state, metrics = functions.train(state, batch)
            losses.append(metrics["loss"])
    first, last = float(losses[0]), float(np.mean([float(loss) for loss in losses[-10:]]))
    fine = last < OVERFIT_RATIO * first
    text = (
        f"eight clips, {steps} steps, loss {first:.3f} -> {last:.3f} (below "
        f"{OVERFIT_RATIO:g} of the first), {time.perf_counter() - began:.0f} s"
    )
    return Finding("overfit", fine, text, "" if fine else "the step does not learn: report a bug")


def examine_run(workdir: str) -> list[Finding]:
    """Check the run of a work directory. Raises UserError if there is none."""
    folder = as_path(workdir)
    if not exists(folder / METRICS):
        raise UserError(f"no run in {workdir!r}: give the --workdir of `videomae train`")
    rows = read_metrics(workdir)
    steps = [row for row in rows if "loss" in row]
    return [history(folder, steps), bad_videos(folder), learning(rows, steps), feeding(steps)]


def history(folder: Path, steps: list[dict]) -> Finding:
    """Report the steps, the newest checkpoint and the restarts of a run."""
    saved = [int(name) for name in names(folder / CHECKPOINTS) if name.isdigit()]
    latest = f"newest checkpoint at step {max(saved):,}" if saved else "no checkpoint yet"
    text = f"{steps[-1]['step']:,} steps logged, {latest}" if steps else f"no step yet, {latest}"
    if steps and "restarts" in steps[-1]:
        # Read the account: the newest start may not have logged a line yet.
        account = Goodput(str(folder)).metrics()
        text += (
            f", {account['restarts']:g} restarts that lost {account['lost_steps']:g} steps; "
            f"{steps[-1]['useful_share']:.0%} of the time since the first start were training"
        )
    return Finding("history", bool(steps), text, "" if steps else "read what the run printed")


def bad_videos(folder: Path) -> Finding:
    """Check that all videos could be read, and count the reasons."""
    file = folder / BAD_VIDEOS
    # In a bucket, each process but the first has a folder of its own.
    others = [folder / "processes" / name / BAD_VIDEOS for name in names(folder / "processes")]
    found = {path: why for each in (file, *others) for path, why in read_reasons(each).items()}
    reasons = Counter(found.values())
    if not reasons:
        return Finding("videos", True, "all could be read")
    common = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    return Finding(
        "videos",
        False,
        f"{reasons.total()} could not be read: {common}",
        f"repair them or take them out of the manifest, then delete {file}",
    )


def learning(rows: list[dict], steps: list[dict]) -> Finding:
    """Check that the loss is finite, falls, and is below that of predicting zero."""
    if not steps:
        return Finding("loss", False, "no finite step yet", "look at the first lines of the log")
    losses = [row["loss"] for row in steps]
    text = f"{losses[0]:.4f} at step {steps[0]['step']:,}, {losses[-1]:.4f} now"
    held_out = [row["eval/vs_zero"] for row in rows if "eval/vs_zero" in row]
    trained = [row["vs_zero"] for row in steps if "vs_zero" in row]
    for where, values in (("held-out", held_out), ("training", trained)):
        if values:
            text += f"; {values[-1]:.3f} of predicting zero on {where} clips"
            if values[-1] >= 1:
                advice = (
                    "worse than predicting zero: train longer; if the loss does not fall, look at "
                    "the rate that the run printed: small batches make it small"
                )
                return Finding("loss", False, text, advice)
            break
    # Too early to judge with fewer values: the learning rate is still warming up.
    fine = len(losses) < 3 or min(losses[1:]) < losses[0]
    advice = "" if fine else "it never fell below its first value: lower the learning rate"
    return Finding("loss", fine, text, advice)


def feeding(steps: list[dict]) -> Finding:
    """Check whether the devices waited for data in the last steps."""
    recent = steps[-10:]
    if not recent:
        return Finding("data", False, "no step yet", "look at the first lines of the log")
    share = float(np.mean([row["waiting_share"] for row in recent]))
    rate = float(np.median([row["clips_per_second"] for row in recent]))
    text = f"{rate:,.4g} clips/s, {share:.0%} of the time waiting for data"
    if share < DATA_BOUND:
        return Finding("data", True, text)
    return Finding(
        "data",
        False,
        text,
        "data bound: put the videos on a local disk, re-encode them small, raise data.threads "
        f"({count_cores()} cores here), or take several clips of each with repeats",
    )


def _file_system(folder: str) -> str:
    """Return the type of the file system of a folder, "unknown" without /proc/mounts."""
    path, best, kind = os.path.realpath(folder), "", "unknown"
    if os.path.exists("/proc/mounts"):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, name, *_ = line.split(" ")
            inside = path == mount or path.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, name
    return kind
