"""Read videos and records, on a disk or in a bucket."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

from videomae_jax import paths
from videomae_jax.data.turns import waiting

# Bytes of a video in a bucket that the first request reads: more than those of most clips.
FIRST = 8 << 20
# The largest video that is read as a whole; longer ones are read in blocks, some of them twice.
WHOLE = 64 << 20
# Threads that wait for a bucket, beside those that decode: 20 ms a request then allow 1,600
# requests a second.
READERS = 32
# Errors about a path. Of these, two have no class of their own.
_ABOUT_PATHS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_ABOUT_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)


class UnreadableVideo(ValueError):
    """The chosen frames cannot be read; the message is the reason, without the path.

    `transient` is True if trying again may help: for an input-output error of a disk or a
    network, but not for a missing file.
    """

    def __init__(self, reason: str, *, transient: bool = False):
        super().__init__(reason)
        self.transient = transient


def is_transient(error: Exception) -> bool:
    """Return whether an error is one of a disk or a network, and not about a path."""
    about_path = isinstance(error, _ABOUT_PATHS) or getattr(error, "errno", None) in _ABOUT_NAMES
    return isinstance(error, OSError) and not about_path


def readers(files: Iterable[str]) -> int:
    """Return how many threads wait for these files beside those that compute: 0 for local ones."""
    return READERS if any(map(paths.is_remote, files)) else 0


def read_bytes(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Read a part of a file, fewer bytes at its end; size -1 is all.

    Raises UnreadableVideo that names the file, and StorageError or StorageUnavailable for a bucket
    that denies access or does not answer, see `paths`.
    """
    try:
        return _read(path, offset, size)
    except UnreadableVideo as error:
        name = os.path.basename(path)
        raise UnreadableVideo(f"{name}: {error}", transient=error.transient) from error


def fetch_video(source: str | bytes) -> str | bytes:
    """Return the bytes of a video in a bucket; of a local one, or one above WHOLE, its path.

    Raises as `read_bytes` does.
    """
    if isinstance(source, bytes) or not paths.is_remote(source):
        return source
    head = _read(source, 0, FIRST)
    if len(head) < FIRST:
        return head
    return head + _read(source, FIRST, -1) if paths.size(source) <= WHOLE else source


def open_blocks(path: str) -> BinaryIO:
    """Open a video in a bucket to read and seek. Raises as `read_bytes` does."""
    with _explained():
        return paths.open_binary(path)


def _read(path: str, offset: int, size: int) -> bytes:
    with _explained(), waiting() if paths.is_remote(path) else nullcontext():
        return paths.read_bytes(path, offset, size)


@contextmanager
def _explained() -> Iterator[None]:
    """Make UnreadableVideo of the errors of one file."""
    try:
        yield
    except OSError as error:
        transient = is_transient(error)
        # Where a bucket answers "not found", the text is only an address.
        reason = error.strerror or (str(error) if transient else "no such object")
        raise UnreadableVideo(reason.lower(), transient=transient) from error
