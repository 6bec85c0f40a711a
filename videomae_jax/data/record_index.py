"""The index of packed records: what it contains, and how it is read and verified.

`index.json` describes the whole, `index.npz` has the columns: VIDEO_TYPES, RECORD_TYPES, TEXTS
and, for key frames with boxes, KEY_TYPES. `data.pack` writes them.
"""

import hashlib
import io
import json
from collections.abc import Iterable

import numpy as np

from videomae_jax.data.storage import UnreadableVideo, read_bytes
from videomae_jax.errors import UserError
from videomae_jax.paths import join

VERSION = 1
BOX_VERSION = 2  # of an index with key frames
INDEX, COLUMNS = "index.json", "index.npz"
# The names of the data set and its split for tensorflow-datasets.
DATASET, SPLIT = "videos", "train"
# Columns with a row for each video or each record, in the order of the source. Of videos with
# several labels, "label" is bool [videos, classes].
VIDEO_TYPES = {"label": np.int32, "parts": np.int32, "height": np.int32, "width": np.int32}
RECORD_TYPES = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,  # of the record with its framing: every byte of a file is in one
    "crc": np.uint32,  # zlib's, over `length` bytes
    "frames": np.int32,
}
# Columns of an index of version 2. Its videos are those of all key frames, each once; "film" is
# the one of a key frame. "offsets" has one row more than key frames, "seconds" one for each frame
# of the records (none for files stored unchanged), the others one for each key frame or box.
KEY_TYPES = {
    "film": np.int32,
    "second": np.float64,
    "stamp": np.float64,
    "offsets": np.int64,
    "boxes": np.float32,  # [boxes, 4]
    "targets": np.uint8,  # [boxes, K / 8], packed bits
    "scores": np.float32,
    "persons": np.int64,
    "seconds": np.float64,
    "name": np.uint8,  # texts, see `pack_texts`
}
# Columns with a text for each video, see `pack_texts`.
TEXTS = ("path", "reason")
# Keys of index.json and their types.
KEYS = {
    "version": int,
    "settings": dict,
    "labelled": bool,
    "class_names": list,
    "videos": int,
    "unreadable": int,
    "records": int,
    "frames": int,
    "bytes": int,
    "columns_sha256": str,
    "shards": list,
}


def read_index(folder: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read and verify the index of packed records: (contents of index.json, all columns).

    Raises UserError for an index of another version, and for one that is damaged.
    """
    name = join(folder, INDEX)
    try:
        text = read_bytes(name)
    except UnreadableVideo as error:
        raise UserError(f"{folder}: {error}") from None
    try:
        index = json.loads(text)
    except ValueError:
        raise UserError(f"{name} is damaged: pack again into the same folder") from None
    found = index.get("version") if isinstance(index, dict) else None
    if found not in (VERSION, BOX_VERSION):
        raise UserError(
            f"{name} is of version {found}, this program reads {VERSION} and {BOX_VERSION}: pack "
            "again"
        )
    wrong = [key for key, kind in KEYS.items() if not isinstance(index.get(key), kind)]
    if wrong:
        raise UserError(f"{name} has no {wrong[0]} of the right type: pack again")
    try:
        data = read_bytes(join(folder, COLUMNS))
    except UnreadableVideo as error:
        raise UserError(f"{folder}: {error}; pack again into the same folder") from None
    if hashlib.sha256(data).hexdigest() != index["columns_sha256"]:
        raise UserError(f"{join(folder, COLUMNS)} is damaged: pack again into the same folder")
    columns = read_columns(data)
    label = np.bool_ if index.get("multi_label") else np.int32  # an old index lacks the key
    types = VIDEO_TYPES | {"label": label} | RECORD_TYPES | dict.fromkeys(TEXTS, np.uint8)
    if found == BOX_VERSION:
        types |= KEY_TYPES
    if {key: column.dtype for key, column in columns.items()} != types:
        raise UserError(f"{join(folder, COLUMNS)} has other columns than {', '.join(types)}")
    return index, columns


def read_columns(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file. Damage raises errors of many kinds, see `_read_part`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def write_columns(columns: dict[str, np.ndarray]) -> bytes:
    """Return an npz file of arrays."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **columns)
    return file.getvalue()


def pack_texts(texts: Iterable[str]) -> np.ndarray:
    """Return texts as one row of bytes, uint8 [...], with a zero byte after each."""
    data = "".join(f"{text}\0" for text in texts).encode("utf-8", "surrogateescape")
    return np.frombuffer(data, np.uint8)


def unpack_texts(data: np.ndarray) -> tuple[str, ...]:
    """Return the texts that `pack_texts` joined."""
    return tuple(data.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
