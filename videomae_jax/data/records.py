"""Packed videos: record files with an index, read in any order.

A record is a `tf.train.Example` in a TFRecord file, as tensorflow-datasets writes and reads
them. TFRecord files have no random access of their own; the index, which holds where each
record begins, its length and its checksum, gives it. `tfds:NAME` and folders that
tensorflow-datasets has prepared have no index: one is made while opening, from the lengths
that stand before the records.
"""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from videomae_jax.data.storage import exists, join, read_bytes

# Its start-up messages are about devices that it is not to use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

from videomae_jax.data.decode import UnreadableVideo, read_clip  # noqa: E402
from videomae_jax.data.videos import Videos  # noqa: E402
from videomae_jax.errors import UserError  # noqa: E402

VERSION = 1
INDEX, COLUMNS = "index.json", "index.npz"
DATASET, SPLIT = "videos", "train"
# What the index says of every video and of every record, in the order of the source.
VIDEO_TYPES = {"label": np.int32, "parts": np.int32, "height": np.int32, "width": np.int32}
RECORD_TYPES = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,  # of the record with its framing: every byte of a file is in one
    "crc": np.uint32,  # zlib's, over `length` bytes
    "frames": np.int32,
}
# Of the texts, in one row of bytes each, with a zero byte between.
TEXTS = ("path", "reason")
# Keys of the index file and their types.
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
HEADER, FOOTER = 12, 4  # bytes of TFRecord framing around each record


@dataclass(frozen=True, eq=False)
class Records:
    """Where the videos of a source lie in its record files, and how to read them.

    kind: "jpeg" (a record holds pictures of known size), "picture" (of any format) or "video"
    (it holds a video file). key: of the feature in the records. shards: paths. paths: of the
    videos, see `Videos`. first: int64 [videos + 1], the first record of each. columns: those
    of RECORD_TYPES; crc and frames are missing where nobody has counted them. sizes: int32
    [videos, 2], height and width, of kind "jpeg". reasons: why a video without records has none.
    format: what `videomae data pack` was told.
    """

    kind: str
    key: str
    shards: tuple[str, ...]
    paths: tuple[str, ...]
    first: np.ndarray
    columns: dict[str, np.ndarray]
    sizes: np.ndarray | None = None
    reasons: dict[str, str] | None = None
    format: str | None = None

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each path; of one that comes twice any, its records are the same."""
        return {path: place for place, path in enumerate(self.paths)}

    def read_clip(
        self, path: str, choose: Callable[[int], np.ndarray], *, channels: int
    ) -> np.ndarray:
        """Return the chosen frames, uint8 [F, H, W, channels], as `decode.read_clip` does."""
        if self.kind != "video":
            return decode_pictures(self.read_pictures(path, choose), channels=channels)
        video = self._find(path)
        records = range(*self.first[[video, video + 1]])
        how = dict(channels=channels, indexed=self.format == "mp4")
        if len(records) == 1:
            return read_clip(self._values(records[0])[0], choose, **how)
        indices, record, frame = self._choose(video, choose)
        # Each part writes into the whole: what is copied keeps the other threads waiting.
        clip = np.empty((len(indices), *self.size(path), channels), np.uint8)
        for part in np.unique(record):
            rows = np.flatnonzero(record == part)
            values = self._values(part)
            read_clip(values[0], lambda _, rows=rows: frame[rows], out=clip, rows=rows, **how)
        return clip

    def read_pictures(self, path: str, choose: Callable[[int], np.ndarray]) -> list[bytes]:
        """Return the chosen frames as they are stored. Raises UnreadableVideo."""
        video = self._find(path)
        if "frames" not in self.columns:
            pictures = self._values(self.first[video])
            if not pictures:
                raise UnreadableVideo("no frames")
            return [pictures[index] for index in np.asarray(choose(len(pictures))).tolist()]
        _, record, frame = self._choose(video, choose)
        parts = {part: self._values(part) for part in np.unique(record).tolist()}
        return [parts[r][f] for r, f in zip(record.tolist(), frame.tolist(), strict=True)]

    def spans(self, path: str, choose: Callable[[int], np.ndarray]) -> list[tuple[str, int, int]]:
        """Return where the records of the chosen frames lie: (file, offset, length)."""
        video = self._find(path)
        records = np.arange(*self.first[[video, video + 1]])
        if len(records) > 1:
            records = np.unique(self._choose(video, choose)[1])
        return [self._span(record) for record in records]

    def size(self, path: str) -> tuple[int, int]:
        """Return height and width of the pictures of a packed video."""
        height, width = self.sizes[self.places[path]].tolist()
        return height, width

    def _find(self, path: str) -> int:
        video = self.places[path]
        if self.first[video] == self.first[video + 1]:
            raise UnreadableVideo(self.reasons[path])
        return video

    def _choose(self, video: int, choose: Callable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The indices that `choose` picks, and for each its record and its frame in that."""
        first, last = self.first[[video, video + 1]]
        ends = np.cumsum(self.columns["frames"][first:last])
        indices = np.asarray(choose(int(ends[-1])))
        part = np.searchsorted(ends, indices, side="right")
        return indices, first + part, indices - np.where(part, ends[part - 1], 0)

    def _span(self, record: int) -> tuple[str, int, int]:
        """The file of a record, its offset and its length."""
        shard = self.shards[self.columns["shard"][record]]
        return shard, *(int(self.columns[key][record]) for key in ("offset", "length"))

    def _values(self, record: int) -> list[bytes]:
        """The values of a record's feature. Raises UnreadableVideo that names file and offset."""
        shard, offset, length = self._span(record)
        where = f"{os.path.basename(shard)}, bytes {offset} to {offset + length - 1}"
        data = read_bytes(shard, offset, length)
        if len(data) < length:
            raise UnreadableVideo(f"{where}: truncated at byte {offset + len(data)}")
        if "crc" in self.columns and zlib.crc32(data) != self.columns["crc"][record]:
            raise UnreadableVideo(f"{where}: damaged, the checksum differs")
        try:
            example = tf.train.Example.FromString(memoryview(data)[HEADER:-FOOTER])
        except Exception as error:  # protobuf's, which has several names
            raise UnreadableVideo(f"{where}: not a tf.train.Example") from error
        return list(example.features.feature[self.key].bytes_list.value)


def read_index(folder: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read and verify the index of packed records: (what index.json says, all columns)."""
    name = join(folder, INDEX)
    try:
        index = json.loads(read_bytes(name))
    except ValueError:
        raise UserError(f"{name} is damaged: pack again into the same folder") from None
    if not isinstance(index, dict) or index.get("version") != VERSION:
        found = index.get("version") if isinstance(index, dict) else None
        raise UserError(f"{name} is of version {found}, this program reads {VERSION}: pack again")
    wrong = [key for key, kind in KEYS.items() if not isinstance(index.get(key), kind)]
    if wrong:
        raise UserError(f"{name} has no {wrong[0]} of the right type: pack again")
    try:
        data = read_bytes(join(folder, COLUMNS))
    except UnreadableVideo as error:
        raise UserError(f"{folder}: {error}; pack again into the same folder") from None
    if hashlib.sha256(data).hexdigest() != index["columns_sha256"]:
        raise UserError(f"{join(folder, COLUMNS)} is damaged: pack again into the same folder")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        columns = dict(file)
    types = VIDEO_TYPES | RECORD_TYPES | dict.fromkeys(TEXTS, np.uint8)
    if {key: column.dtype for key, column in columns.items()} != types:
        raise UserError(f"{join(folder, COLUMNS)} has other columns than {', '.join(types)}")
    return index, columns


def open_packed(folder: str) -> Videos:
    index, columns = read_index(folder)
    paths = unpack_texts(columns["path"])
    first = np.concatenate([[0], np.cumsum(columns["parts"], dtype=np.int64)])
    unfit = (
        [len(paths), len(columns["label"])] != [index["videos"]] * 2
        or any(len(columns[key]) != first[-1] for key in RECORD_TYPES)
        or len(columns["shard"])
        and columns["shard"].max() >= len(index["shards"])
    )
    if unfit:
        raise UserError(f"{join(folder, COLUMNS)} does not fit {INDEX}: pack again")
    shards = [join(folder, shard["name"]) for shard in index["shards"]]
    gone = [shard for shard in shards if not exists(shard)]
    if gone:
        raise UserError(
            f"{len(gone)} of {len(shards)} record files are missing, first {gone[0]}: pack again "
            "into the same folder, which writes only those"
        )
    reasons = unpack_texts(columns["reason"])
    format = index["settings"]["format"]
    jpeg = format == "jpeg"
    records = Records(
        kind="jpeg" if jpeg else "video",
        key="frames" if jpeg else "video",
        shards=tuple(shards),
        paths=paths,
        first=first,
        columns={key: columns[key] for key in RECORD_TYPES},
        sizes=np.stack([columns["height"], columns["width"]], axis=1),
        reasons={path: why for path, why in zip(paths, reasons, strict=True) if why},
        format=format,
    )
    return Videos(
        paths=paths,
        labels=columns["label"] if index["labelled"] else None,
        class_names=tuple(index["class_names"]) or None,
        name=folder,
        reader=records,
    )


@tf.function(reduce_retracing=True)
def _decode(pictures: tf.Tensor, channels: int) -> tf.Tensor:
    def decode(picture):
        return tf.io.decode_image(picture, channels=channels, expand_animations=False)

    return tf.map_fn(decode, pictures, fn_output_signature=tf.uint8)


def decode_pictures(pictures: list[bytes], *, channels: int) -> np.ndarray:
    """Decode pictures of one size, in any format: uint8 [F, H, W, channels]."""
    try:
        return _decode(tf.constant(pictures), channels).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UnreadableVideo(f"a picture does not decode: {error.message[:80]}") from error


def pack_texts(texts: list[str]) -> np.ndarray:
    """Return texts as one row of bytes, with a zero byte after each."""
    data = "".join(f"{text}\0" for text in texts).encode("utf-8", "surrogateescape")
    return np.frombuffer(data, np.uint8)


def unpack_texts(data: np.ndarray) -> tuple[str, ...]:
    """Return what `pack_texts` was given."""
    return tuple(data.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
