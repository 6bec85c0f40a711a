"""Save results as they are computed, so that a killed command can resume."""

import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import jax
import numpy as np

from videomae_jax import paths
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.progress import Progress

Row = TypeVar("Row")
Settings = Mapping[str, str | int | float]

# Rows are written after this time or at this size; a killed process loses at most this much.
SECONDS, BYTES = 30.0, 256e6
SETTINGS = "settings.json"


class Parts:
    """The rows of a long computation, saved in order in the files of a folder.

    settings: everything that the rows depend on, by the names that the user knows. Raises
    UserError if the folder has rows of other settings or cannot be written. `position` is
    the one given with the last rows, () at the start. Files are renamed into place when they
    are complete, so that a partial file is never read.
    """

    def __init__(self, folder: str | os.PathLike, settings: Settings):
        self.folder = paths.as_path(folder)
        if paths.is_remote(folder):
            self._copies = tempfile.TemporaryDirectory(prefix="videomae-")
        self._settings = dict(settings)
        self._waiting: list[dict[str, np.ndarray]] = []
        self._written = time.monotonic()
        try:
            paths.make_folder(self.folder)
            self._files = sorted(
                self.folder / name
                for name in paths.names(self.folder)
                if name[:1].isdigit() and name.endswith(".npz")
            )
            if self._files:
                self._check()
            else:
                text = json.dumps(self._settings, indent=1)
                self._write(self.folder / SETTINGS, lambda out: out.write(text.encode()))
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        self.position: tuple[int, ...] = ()
        if self._files:
            with self._open(self._files[-1]) as arrays:
                self.position = tuple(arrays["position"].tolist())

    def add(self, rows: dict[str, np.ndarray], *, position: tuple[int, ...]) -> None:
        """Add rows, one array for each column, all of one length.

        position: the point to resume from, after these rows.
        """
        self._waiting.append(rows)
        self.position = position
        size = sum(column.nbytes for part in self._waiting for column in part.values())
        if size >= BYTES or time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are still in memory.

        Raises UserError if another command began here with other settings, or the folder is gone.
        """
        if not self._waiting:
            return
        self._check()
        columns = {
            name: np.concatenate([part[name] for part in self._waiting])
            for name in self._waiting[0]
        }
        columns["position"] = np.array(self.position)
        file = self.folder / f"{len(self._files):06d}.npz"
        self._write(file, lambda out: np.savez(out, allow_pickle=False, **columns))
        self._files.append(file)
        self._waiting = []
        self._written = time.monotonic()

    def read(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield these columns of the rows, file by file; call `flush` first."""
        for file in self._files:
            with self._open(file) as arrays:
                yield {name: arrays[name] for name in names}

    def remove(self) -> None:
        """Delete the folder."""
        paths.remove_folder(self.folder)

    def _open(self, file: Path) -> Any:
        """Open a file of rows, one of a bucket from a copy: a table reads it once per column."""
        if not paths.is_remote(file):
            return np.load(file)
        copy = Path(self._copies.name, file.name)
        if not copy.exists():
            copy.write_bytes(paths.read_bytes(file))
        return np.load(copy)

    def _check(self) -> None:
        settings, file = self._settings, self.folder / SETTINGS
        try:
            before = json.loads(paths.read_bytes(file))
        except FileNotFoundError:
            raise UserError(f"{file} is gone: remove what is left of its folder") from None
        for name in before.keys() | settings.keys():
            if before.get(name) != settings.get(name):
                raise UserError(
                    f"{self.folder} holds results of {name} {before.get(name)}, this command has "
                    f"{settings.get(name)}: use another --out, or remove that folder"
                )

    def _write(self, file: Path, write: Callable[[BinaryIO], object]) -> None:
        if paths.is_remote(file):
            data = io.BytesIO()
            write(data)
            paths.write_whole(file, data.getvalue())
            return
        with paths.writing(file), paths.to_write_whole(file) as draft, open(draft, "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())


class Output(NamedTuple):
    """Where an evaluation saves its results.

    folder: of all results, None to save nothing. scores: the rows computed so far; None without a
    folder, and with several processes, which cannot know where the others stopped. bad: the
    unreadable videos.
    """

    folder: Path | None
    scores: Parts | None
    bad: BadVideos


def open_output(
    out: str | os.PathLike[str] | None,
    videos: Videos,
    settings: Callable[[], Settings],
    *,
    batch_size: int,
) -> Output:
    """Open the folder of an evaluation, and resume from the scores in it.

    settings: returns those of `Parts`; the batch size and the devices are added. Without scores,
    an old list of unreadable videos is deleted. Raises UserError for results of other settings.
    """
    if out is None:
        return Output(None, None, BadVideos(videos, max_share=1.0))
    folder = paths.as_path(out)
    scores = None
    if jax.process_count() == 1:
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        machine: dict[str, str | int] = {"batch-size": batch_size, "devices": devices}
        scores = Parts(folder / "scores", {**settings(), **machine})
    file = folder / "unreadable.csv"
    if not (scores and scores.position):
        with paths.writing(file):
            paths.make_folder(folder)
            paths.remove(file)
    bad = BadVideos(videos, max_share=1.0, file=file, process_index=jax.process_index())
    return Output(folder, scores, bad)


def collect_rows(
    batches: Generator[Row, None, None],
    scores: Parts | None,
    *,
    columns: Callable[[Row], dict[str, np.ndarray]],
    begun: int,
    total: int,
    show: Callable[[Progress, int], None],
    stopped: Callable[[], bool],
) -> list[Row] | None:
    """Return the results of all batches after the first `begun`; None if stopped.

    scores: where they are saved after every batch, as `columns` of each. total: of the batches.
    show: shows the progress after so many batches. stopped: called after every batch.
    """
    found = []
    progress = Progress(total, begun=begun)
    with closing(batches):
        for batch, rows in enumerate(batches, begun + 1):
            found.append(rows)
            if scores:
                scores.add(columns(rows), position=(batch,))
            show(progress, batch)
            if stopped():
                break
        progress.close()
        if scores:
            scores.flush()
    return None if stopped() else found


def fingerprint(tree: Any) -> str:
    """Return a hash of all arrays and strings of a tree, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, str):
            digest.update(leaf.encode("utf-8", "surrogateescape") + b"\n")
        else:
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
