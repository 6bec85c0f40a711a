"""The list of videos that could not be read."""

import csv
import io
import os
import re
import threading
import time

from videomae_jax import paths
from videomae_jax.data.turns import waiting
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

COLUMNS = ["path", "reason", "process"]
# Seconds between two writes of one object of a bucket, which allows about one a second.
PAUSE = 1.0


class BadVideos:
    """Records unreadable videos, each once with its reason.

    With a `file` (`WORKDIR/bad_videos.csv`) they are also appended there, one row each. Videos
    that the file lists already are counted from the start, so a resumed run continues the count.
    Several processes may share the file, and several threads this object. As nothing can be
    appended in a bucket, each process writes a file of its own there, `NAME-00001.csv` and so on
    after the first, with all of its rows.
    """

    def __init__(
        self,
        videos: Videos,
        *,
        max_share: float,
        file: str | os.PathLike | None = None,
        process_index: int = 0,
    ):
        self.max_share = max_share
        self.file = None if file is None else os.fspath(file)
        # Key frames share videos.
        self.total = len(videos if videos.key_frames is None else set(videos.paths))
        self.reasons: dict[str, str] = {}
        self._process_index = process_index
        self._lock = threading.Lock()
        if self.file is not None:
            known = set(videos.paths)
            rows = read_reasons(self.file).items()
            self.reasons = {path: reason for path, reason in rows if path in known}
            if paths.is_remote(self.file):
                self._object = _Object(self.file, process_index)

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def share(self) -> float:
        """The fraction of the videos that is unreadable, 0 to 1."""
        return len(self) / self.total

    def add(self, path: str, reason: str) -> None:
        """Record an unreadable video. Raises UserError if the file cannot be written."""
        with self._lock:
            if path in self.reasons:
                return
            self.reasons[path] = reason
            if self.file is not None and not paths.is_remote(self.file):
                _append(self.file, [path, reason, self._process_index])
        if self.file is not None and paths.is_remote(self.file):
            self._object.add(path, reason)

    def check(self) -> None:
        """Raise UserError if the fraction of unreadable videos is above `max_share`.

        A single unreadable video is always allowed, because among few videos it is above any
        fraction, unless `max_share` is 0.
        """
        allowed = max(1, int(self.max_share * self.total)) if self.max_share else 0
        if len(self) > allowed:
            repaired = " (delete it once they are repaired)" if self.file else ""
            raise UserError(
                f"{self._sum()}, above data.max_bad_share={self.max_share:g}; "
                f"{self._where()}{repaired}; `videomae data check` lists the readable ones"
            )

    def __str__(self) -> str:
        return f"{self._sum()}; {self._where()}" if self.reasons else self._sum()

    def _sum(self) -> str:
        return f"{len(self)} of {self.total} videos unreadable ({self.share:.1%})"

    def _where(self) -> str:
        if self.file is not None:
            return f"listed in {self.file}"
        path, reason = next(iter(self.reasons.items()))
        return f"first {path} ({reason})"


def read_reasons(file: str | os.PathLike) -> dict[str, str]:
    """Return why each video of a list of `BadVideos` is unreadable: {path: reason}.

    In a bucket, also of the lists of other processes. Empty if there is no list yet.
    """
    file = os.fspath(file)
    files = _siblings(file) if paths.is_remote(file) else [file]
    return {path: reason for one in files for path, reason in _rows(one)}


def _rows(file: str) -> list[tuple[str, str]]:
    """Return the (path, reason) rows of a file, none if there is no file yet."""
    if not paths.exists(file):
        return []
    text = paths.read_bytes(file).decode("utf-8", "surrogateescape")
    lines = csv.reader(io.StringIO(text, newline=""))
    # Another process may have written the header at the same time, so it can be in any row.
    return [(row[0], row[1]) for row in lines if len(row) == 3 and row != COLUMNS]


def _siblings(file: str) -> list[str]:
    """Return the files of all processes, of which `file` is the first."""
    folder, _, name = file.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    pattern = rf"{re.escape(stem)}(-\d{{5}})?{re.escape(dot + ending)}"
    return [f"{folder}/{name}" for name in paths.names(folder) if re.fullmatch(pattern, name)]


class _Object:
    """The file of one process in a bucket. Rows that are added meanwhile are written together."""

    def __init__(self, file: str, process: int):
        stem, dot, ending = file.rpartition(".")
        self._file = f"{stem}-{process:05}{dot}{ending}" if process else file
        self._process = process
        self._rows = dict(_rows(self._file))
        self._written = set(self._rows)
        self._last = time.monotonic() - PAUSE
        self._turn = threading.Lock()

    def add(self, path: str, reason: str) -> None:
        """Return when a file with this row is written."""
        self._rows[path] = reason
        with waiting(), self._turn:
            if path in self._written:
                return
            time.sleep(max(0.0, self._last + PAUSE - time.monotonic()))
            rows = self._rows.copy()
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*row, self._process] for row in rows.items())
            paths.write_whole(self._file, text.getvalue().encode("utf-8", "surrogateescape"))
            self._written, self._last = set(rows), time.monotonic()


def _append(file: str, row: list) -> None:
    """Append a row in a single write, which is atomic even if processes share the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not os.fstat(descriptor).st_size:
                writer.writerow(COLUMNS)
            writer.writerow(row)
            os.write(descriptor, text.getvalue().encode("utf-8", "surrogateescape"))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot list an unreadable video in {file}: {error.strerror}") from error
