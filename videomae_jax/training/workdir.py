"""The work directory of a run: its files, and one-line errors where it cannot be written."""

import errno
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from videomae_jax.data.unreadable import BadVideos
from videomae_jax.errors import UserError
from videomae_jax.pictures import plot_curve
from videomae_jax.training.checkpoint import FOLDER
from videomae_jax.training.monitor import read_metrics

# TensorFlow and tensorstore raise errors of their own, with the system's words in them.
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)}


@contextmanager
def work_directory(workdir: str, *, checkpoints: str) -> Iterator[None]:
    """Turn errors inside into a UserError where `workdir` can no longer be written.

    checkpoints: the name of its folder with one sub-folder per step.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_reason(error, workdir)
        if reason is None:
            raise
        names = [path.name for path in Path(workdir, checkpoints).glob("*")]
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
    fixed = (
        *("model.encoder", "model.decoder", "model.patch", "model.classes", "data.class_names"),
        *("model.head", "rates"),  # of probes
    )
    for key, (old, new) in changes.items():
        average = key == "ema_decay" and bool(old) != bool(new)
        # The optimizer's state has another structure.
        layers = key == "layer_decay" and (old == 1) != (new == 1)
        if key == "task" or key.startswith(fixed) or average or layers:
            raise UserError(
                f"{workdir} holds a checkpoint with {key}={reprlib.repr(old)}, the config says "
                f"{reprlib.repr(new)}: use another --workdir, or that config"
            )


def make_workdir(workdir: str) -> None:
    """Create `workdir` and try writing to it; raises UserError where that fails."""
    probe = Path(workdir) / f".probe-{jax.process_index()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"videomae")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir {workdir}: {error.strerror}; use another"
        ) from None


def finish(workdir: str, steps: int, *, bad: BadVideos) -> None:
    """Plot the curve of a finished run and print where its files are."""
    if jax.process_index() > 0:
        return
    curve = Path(workdir) / "curve.png"
    plot_curve(read_metrics(workdir), str(curve))
    print(f"done, {steps:,} steps")
    if len(bad):
        print(f"  replaced    {bad}")
    print(f"  checkpoint  {Path(workdir) / FOLDER / str(steps)}")
    print(f"  curve       {curve}")
