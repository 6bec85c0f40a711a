"""What a disk that is full, read-only or gone says, in one line."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videomae_jax.errors import UserError

# TensorFlow and tensorstore raise errors of their own, with the system's words in them.
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)}


@contextmanager
def work_directory(workdir: str, *, checkpoints: str) -> Iterator[None]:
    """Raise UserError for what goes wrong inside because `workdir` can no longer be written.

    checkpoints: the folder of it that has one folder for each step.
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
    """Return why `workdir` cannot be written if that is what an exception is about, else None."""
    root = Path(workdir).absolute()
    if not root.is_dir():
        return "the directory is gone"
    if isinstance(error, OSError) and error.errno in FULL:
        return FULL[error.errno]
    if isinstance(error, OSError) and error.filename is not None:
        file = Path(os.fsdecode(error.filename)).absolute()
        return f"{error.strerror}: {file}" if file.is_relative_to(root) else None
    return next((words for words in FULL.values() if words in str(error)), None)
