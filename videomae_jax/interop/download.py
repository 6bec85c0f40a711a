"""Copy weights of other projects from a bucket to the local disk."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videomae_jax import paths
from videomae_jax.errors import UserError
from videomae_jax.interop.safetensors_file import indexed_files
from videomae_jax.interop.transformers_folder import JSON_FILES, WEIGHTS
from videomae_jax.progress import Progress

CHUNK = 32 << 20  # bytes of one request

_kept: dict[str, tempfile.TemporaryDirectory] = {}  # copies for a second use, by address


@contextmanager
def local_weights(path: str, *, keep: bool = False) -> Iterator[str]:
    """Yield the local path of a file or folder of weights; one in a bucket is copied for the body.

    Of a folder, only its weights and what describes them are copied. keep: leave the copy to the
    next call with this path, or to the end of the process. A UserError of the body names the files
    by their addresses.
    """
    if not paths.is_remote(path):
        yield path
        return
    address = path.rstrip("/")
    folder = address if paths.is_folder(address) else address.rpartition("/")[0]
    kept = _kept.pop(address, None)
    copy = kept or tempfile.TemporaryDirectory(prefix="videomae-")
    try:
        if not kept:
            _copy_weights(address, folder, copy.name)
        yield copy.name + address.removeprefix(folder)
        if keep:
            _kept[address] = copy
    except UserError as error:
        # Of its own kind, whose exit code says whether a restart may help.
        raise type(error)(str(error).replace(copy.name, folder)) from None
    finally:
        if address not in _kept:
            copy.cleanup()


def _copy_weights(address: str, folder: str, local: str) -> None:
    """Copy a file of weights, or those of a folder, and the JSON files of its folder."""
    if address == folder:
        there = paths.names(address)
        weights = next(name for name in WEIGHTS if name in there)
    else:
        there = [name for name in JSON_FILES if paths.exists(f"{folder}/{name}")]
        weights = address.rpartition("/")[2]
    _copy(folder, local, [name for name in there if name in JSON_FILES] + [weights])
    if weights.endswith(".index.json"):
        _copy(folder, local, [file.name for file in indexed_files(Path(local, weights))])


def _copy(address: str, folder: str, names: list[str]) -> None:
    """Copy files of a folder of a bucket, and show the progress."""
    sizes = {name: paths.size(f"{address}/{name}") for name in names}
    total, done = sum(sizes.values()), 0
    progress = Progress(total)
    for name, size in sizes.items():
        with open(Path(folder, name), "wb") as file:
            for offset in range(0, size, CHUNK):
                done += file.write(paths.read_bytes(f"{address}/{name}", offset, CHUNK))
                of = f"{address}/{name}, {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
                progress.show(done, count=done // 10**6, unit="MB", of=of)
    progress.close()
