"""Write rows to one .npz file, one .parquet file (with pyarrow), or one .npy for each video.

The rows are never all in memory at once.
"""

import importlib.util
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.paths import to_write_whole, writing

Rows = dict[str, np.ndarray]
FOLDER = "/"  # the ending of a folder of .npy files


def ending_of(path: str) -> str:
    """Return the ending of a path of `write_table`: ".npz", ".parquet", `FOLDER`, or another."""
    return FOLDER if path.endswith(FOLDER) else Path(path).suffix


def check_ending(path: str) -> None:
    """Raise UserError unless `write_table` can write a file with this ending."""
    ending = ending_of(path)
    if ending not in (".npz", ".parquet", FOLDER):
        raise UserError(
            f"{path} does not end in .npz, .parquet or {FOLDER} (a folder of one .npy a video)"
        )
    if ending == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{path} needs pyarrow: pip install 'videomae_jax[parquet]', or write an .npz"
        )


def write_table(
    path: str,
    read: Callable[..., Iterable[Rows]],
    columns: Sequence[str],
    *,
    paths: Sequence[str],
    facts: Mapping[str, str | int | float],
) -> None:
    """Write rows to one file or folder, which is renamed into place when it is complete.

    read: `read(*columns)` yields these columns of all rows, part by part; there must be at
    least one row. It is called several times. paths: the path of each video; the column "video"
    has positions in this list. An .npz has them once, as "paths", a .parquet in every row, as
    "path". facts: the settings, stored as JSON under "facts": an array of an .npz, schema
    metadata of a .parquet. A path that ends in `FOLDER` is written as `_write_npy` says. Raises
    UserError if the file cannot be written.
    """
    write = {".npz": _write_npz, ".parquet": _write_parquet, FOLDER: _write_npy}[ending_of(path)]
    with writing(path), to_write_whole(path) as draft:
        write(draft, read, columns, paths=np.array(paths), facts=json.dumps(facts))


def video_name(path: str) -> str:
    """Return the name of a video in a folder of .npy files, that of its file without ending."""
    return Path(path).stem


def _write_npy(draft: Path, read, columns: Sequence[str], *, paths: np.ndarray, facts: str) -> None:
    """Write the features of each video, [n, D], to NAME.npy, and the facts to facts.json."""
    draft.mkdir()
    (draft / "facts.json").write_text(facts + "\n")

    def rows():
        for part in read("video", "features"):
            yield from zip(part["video"], part["features"], strict=True)

    # The rows of a video follow one another.
    for video, group in groupby(rows(), key=lambda row: row[0]):
        features = np.stack([feature for _, feature in group])
        np.save(draft / f"{video_name(paths[video])}.npy", features)


def _write_npz(draft: Path, read, columns: Sequence[str], *, paths: np.ndarray, facts: str) -> None:
    def put(name, shape, dtype, arrays):
        header = dict(descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=shape)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
            np.lib.format.write_array_header_2_0(out, header)
            for array in arrays:
                out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    count = sum(len(part[columns[0]]) for part in read(columns[0]))
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        for name in columns:
            first = next(iter(read(name)))[name]
            arrays = (part[name] for part in read(name))
            put(name, (count, *first.shape[1:]), first.dtype, arrays)
        for name, array in {"paths": paths, "facts": np.array(facts)}.items():
            put(name, array.shape, array.dtype, [array])


def _write_parquet(
    draft: Path, read, columns: Sequence[str], *, paths: np.ndarray, facts: str
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def column(array):
        # Nested lists of the shape of a row.
        flat = pa.array(array.reshape(-1))
        for size in reversed(array.shape[1:]):
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
        return flat

    # The names of files may be no text; see `os.fsdecode`.
    texts = np.array([path.encode("utf-8", "backslashreplace").decode() for path in paths.tolist()])
    writer = None
    try:
        for rows in read(*columns):
            table = pa.table({name: column(array) for name, array in rows.items()})
            names = pa.array(texts[rows["video"]]).dictionary_encode()
            table = table.add_column(1, "path", names)
            if writer is None:
                schema = table.schema.with_metadata({"facts": facts})
                writer = parquet.ParquetWriter(draft, schema)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
