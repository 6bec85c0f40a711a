"""Local files, and remote ones for which TensorFlow has a file system."""

import os
import re
from typing import Any

# Its start-up messages are about devices that it is not to use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

from videomae_jax.data.decode import UnreadableVideo  # noqa: E402
from videomae_jax.errors import UserError  # noqa: E402


def is_remote(path: str) -> bool:
    """Return whether a path is an address, such as gs://bucket/folder."""
    return re.match(r"[a-z][a-z0-9]*://", path) is not None


def join(folder: str, name: str) -> str:
    """Return the path of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def open_file(path: str, mode: str = "rb") -> Any:
    """Open a binary file, local or remote."""
    # TensorFlow's reader of local files makes one more copy.
    return tf.io.gfile.GFile(path, mode) if is_remote(path) else open(path, mode)


def read_bytes(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Read a part of a file, fewer bytes at its end; size -1 is all. Raises UnreadableVideo."""
    try:
        with open_file(path) as file:
            file.seek(offset)
            return file.read(size)
    except (OSError, tf.errors.OpError) as error:
        lasting = isinstance(error, FileNotFoundError | PermissionError | tf.errors.NotFoundError)
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        name = os.path.basename(path)
        raise UnreadableVideo(f"{name}: {reason.lower()}", transient=not lasting) from error


def exists(path: str) -> bool:
    """Return whether a file exists. Raises UserError for an address that cannot be opened."""
    try:
        return tf.io.gfile.exists(path)
    except tf.errors.UnimplementedError:
        scheme = path.partition("://")[0]
        raise UserError(
            f"TensorFlow opens no {scheme}:// here: copy the folder to a disk, or install a "
            f"TensorFlow file system for {scheme}"
        ) from None
