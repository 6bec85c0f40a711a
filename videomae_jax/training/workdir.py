"""The work directory of a run: its files, and one-line errors where it cannot be written."""

import csv
import errno
import json
import os
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, count_labels
from videomae_jax.errors import UserError
from videomae_jax.paths import SCHEMES, as_path, explain, is_remote, read_bytes, remove, write_whole
from videomae_jax.training.curve import plot_curve

CHECKPOINTS = "checkpoints"  # a folder with one sub-folder per step
METRICS = "metrics.jsonl"
BAD_VIDEOS = "bad_videos.csv"
GOODPUT = "goodput.json"
CURVE = "curve.png"
CLASSES = "classes.csv"

# TensorFlow and tensorstore raise errors of their own, with the system's words in them.
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)}


class ClassRow(NamedTuple):
    """One class, with its numbers of training and held-out videos, or boxes of a detector."""

    label: int
    name: str
    train: int
    held_out: int


@contextmanager
def work_directory(workdir: str) -> Iterator[None]:
    """Turn errors inside into a UserError where `workdir` can no longer be written."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_remote(workdir):
            problem = explain(error, workdir)
            if problem is None:
                raise
            raise problem from None
        reason = disk_reason(error, workdir)
        if reason is None:
            raise
        names = [path.name for path in Path(workdir, CHECKPOINTS).glob("*")]
        steps = [int(name) for name in names if name.isdigit()]
        raise UserError(
            f"cannot write to {workdir}: {reason}; "
            + (f"its last checkpoint is step {max(steps):,}" if steps else "it has no checkpoint")
        ) from None


def disk_reason(error: Exception, workdir: str) -> str | None:
    """Return why `workdir` cannot be written; None where an exception has another cause."""
    root = Path(workdir).absolute()
    if not root.is_dir():
        return "the directory is gone"
    if isinstance(error, OSError) and error.errno in FULL:
        return FULL[error.errno]
    if isinstance(error, OSError) and error.filename is not None:
        file = Path(os.fsdecode(error.filename)).absolute()
        return f"{error.strerror}: {file}" if file.is_relative_to(root) else None
    return next((words for words in FULL.values() if words in str(error)), None)


def check_same_model(changes: dict, *, workdir: str) -> None:
    """Raise UserError when a checkpoint's config names another model than the run's."""
    if "task" in changes:  # the other changes follow from it
        changes = {"task": changes["task"]}
    elif "teacher_model.digest" in changes:
        old, new = changes["teacher"] if "teacher" in changes else ("", "")
        raise UserError(
            f"{workdir} holds a checkpoint of a run with another teacher"
            + (
                f", {old or 'none'}, the config says {new or 'none'}"
                if old != new
                else ": its weights have changed since"
            )
            + ": use another --workdir, or that teacher"
        )
    fixed = (
        *("model.encoder", "model.decoder", "model.patch", "model.positions"),
        *("model.classes", "model.multi_label", "data.class_names"),
        *("model.head", "rates"),  # of probes
        "optimizer.kind",
    )
    for key, (old, new) in changes.items():
        average = key == "ema_decay" and bool(old) != bool(new)
        # The optimizer's state has another structure.
        layers = key == "layer_decay" and (old == 1) != (new == 1)
        channels = key == "model.mean" and len(old) != len(new)
        if key == "task" or key.startswith(fixed) or average or layers or channels:
            raise UserError(
                f"{workdir} holds a checkpoint with {key}={reprlib.repr(old)}, the config says "
                f"{reprlib.repr(new)}: use another --workdir, or that config"
            )


def make_workdir(workdir: str) -> None:
    """Create `workdir` and try writing to it; raises UserError where that fails."""
    _check_name(workdir)
    if is_remote(workdir):
        address = f"{workdir}/.probe-{jax.process_index()}"
        write_whole(address, b"videomae")
        remove(address)
        return
    probe = Path(workdir) / f".probe-{jax.process_index()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"videomae")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir {workdir}: {error.strerror}; use another"
        ) from None


def _check_name(workdir: str) -> None:
    """Raise UserError for a path in which checkpoints could not be read back."""
    if is_remote(workdir):
        bucket, _, folder = workdir.partition("://")[2].partition("/")
        if not bucket or not folder.strip("/"):
            raise UserError(f"--workdir {workdir} names no folder: gs://BUCKET/runs/NAME")
        if special := sorted(set("#?*[]\\\n") & set(workdir)):
            raise UserError(f"--workdir {workdir!r} has {special[0]!r}: use another name")
        return
    if "://" in workdir:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UserError(f"--workdir {workdir} is an address: use {known} or a path of a disk")
    path = str(Path(workdir).absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir {workdir!r} is not UTF-8: use another name") from None
    if "\\" in path:
        raise UserError(f"--workdir {path} has a backslash: tensorstore takes it for a slash")
    for part in Path(path).parts:
        if part.endswith(":"):
            raise UserError(f"--workdir {path}: {part!r} reads like the start of an address")


def check_space(workdir: str, *, needed: int) -> None:
    """Raise UserError when a local `workdir` has less than `needed` bytes free."""
    if is_remote(workdir):
        return
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"{workdir} has {free / 1e9:.2g} GB free, the checkpoints need {needed / 1e9:.2g} GB: "
            "free some or use another --workdir"
        )


def write_classes(
    folder: Path, names: tuple[str, ...], classes: int, train: Videos, held_out: Videos | None
) -> list[ClassRow]:
    """Write classes.csv, the meaning of each label, and return its rows.

    names: of the classes, () if they have none.
    """

    def count(videos: Videos | None) -> list[int]:
        if videos is not None and videos.key_frames is not None:
            return videos.key_frames.targets.sum(0).tolist()
        if videos is None or videos.labels is None:
            return [0] * classes
        return count_labels(videos, classes).tolist()

    names = names or tuple(map(str, range(classes)))
    columns = zip(range(classes), names, count(train), count(held_out), strict=True)
    rows = [ClassRow(*column) for column in columns]
    if jax.process_index() == 0:
        with open(folder / CLASSES, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([ClassRow._fields, *rows])
    return rows


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl in step order.

    A resumed run repeats the steps after its checkpoint; the later row of a step counts. Lines
    that a full disk or a loss of power cut short are skipped.
    """
    rows = {}
    for line in read_bytes(f"{workdir}/{METRICS}").decode().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["step"], "eval/loss" in row] = row
    return [rows[key] for key in sorted(rows)]


def finish(workdir: str, steps: int, *, folder: Path, bad: BadVideos) -> None:
    """Plot the curve of a finished run in `folder` and print where its files are."""
    if jax.process_index() > 0:
        return
    plot_curve(read_metrics(str(folder)), str(folder / CURVE))
    print(f"done, {steps:,} steps")
    if len(bad):
        print(f"  replaced    {bad}")
    print(f"  checkpoint  {as_path(workdir) / CHECKPOINTS / str(steps)}")
    print(f"  curve       {as_path(workdir) / CURVE}")
