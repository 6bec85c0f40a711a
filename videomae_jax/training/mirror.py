"""The small files of a run: written in its work directory, or in a local copy of it.

An object of a bucket is written as a whole, so a run whose work directory is in a bucket writes
its files locally, and a thread uploads those that changed. What belongs to the steps up to a
checkpoint is uploaded before that checkpoint.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from videomae_jax.errors import StorageError, StorageUnavailable, UserError
from videomae_jax.paths import exists, is_remote, read_bytes, write_whole
from videomae_jax.training.workdir import BAD_VIDEOS, GOODPUT, METRICS

# Seconds between two uploads, and the bytes above which a file waits for the next checkpoint.
EVERY, LARGE = 10.0, 1 << 20


class Mirror:
    """Where a process writes the files of a run; use `mirrored`.

    folder: the work directory itself if it is local. In a bucket, the first process continues the
    files of the work directory, and each other one those of WORKDIR/processes/INDEX.
    """

    def __init__(self, workdir: str, folder: Path):
        self.folder = folder
        index = jax.process_index()
        self._address = f"{workdir}/processes/{index}" if index else workdir
        self._uploaded: dict[str, tuple[int, int]] = {}  # of each file, its time and size
        self._problem: UserError | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        if is_remote(workdir):
            for name in (METRICS, GOODPUT, BAD_VIDEOS):
                if exists(f"{self._address}/{name}"):
                    (folder / name).write_bytes(read_bytes(f"{self._address}/{name}"))
                    self._uploaded[name] = _state(folder / name)
            self._thread = threading.Thread(target=self._repeat, name="mirror", daemon=True)
            self._thread.start()

    def push(self) -> None:
        """Upload every file that changed. Raises UserError where the bucket fails."""
        self.check()
        if self._thread:
            self._upload(largest=None)

    def check(self) -> None:
        """Raise the UserError of an upload in the background that failed."""
        if self._problem:
            raise self._problem

    def close(self) -> None:
        """Upload what is left and end the thread."""
        self.end()
        if self._thread:
            self._thread.join()
        self.push()

    def end(self) -> None:
        """End the thread without a last upload."""
        self._ended.set()

    def _repeat(self) -> None:
        while not self._ended.wait(EVERY):
            try:
                self._upload(largest=LARGE)
            except UserError as error:
                self._problem = error
                return

    def _upload(self, *, largest: int | None) -> None:
        with self._lock:
            for file in sorted(self.folder.rglob("*")):
                name = file.relative_to(self.folder).as_posix()
                if not file.is_file() or file.suffix == ".new":
                    continue
                state = _state(file)
                if state == self._uploaded.get(name) or (largest and state[1] > largest):
                    continue
                write_whole(f"{self._address}/{name}", file.read_bytes())
                self._uploaded[name] = state


@contextmanager
def mirrored(workdir: str) -> Iterator[Mirror]:
    """Give the `Mirror` of a work directory; the last upload is at the end of the block."""
    if not is_remote(workdir):
        yield Mirror(workdir, Path(workdir))
        return
    with tempfile.TemporaryDirectory(prefix="videomae_run_") as folder:
        mirror = Mirror(workdir, Path(folder))
        try:
            yield mirror
        except (StorageError, StorageUnavailable):
            mirror.end()  # the bucket has failed
            raise
        except BaseException:
            mirror.close()
            raise
        mirror.close()


def _state(file: Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size
