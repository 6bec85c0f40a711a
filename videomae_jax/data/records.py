"""Packed videos: record files with an index, read in any order.

A record is a `tf.train.Example` in a TFRecord file, as tensorflow-datasets writes and reads
them. TFRecord files have no random access of their own, so the index stores the offset, the
length and the checksum of each record. Data sets of tensorflow-datasets have no index: `data.tfds`
makes one while opening them, from the lengths stored before the records.
"""

import functools
import math
import os
import zlib
from dataclasses import dataclass, field

import numpy as np

from videomae_jax.data.decode import read_clip
from videomae_jax.data.host_tensorflow import tf
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.record_index import (
    BOX_VERSION,
    COLUMNS,
    INDEX,
    RECORD_TYPES,
    read_index,
    unpack_texts,
)
from videomae_jax.data.sampling import ByTime, Choose, make_choice
from videomae_jax.data.storage import UnreadableVideo, read_bytes
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.paths import is_remote, join, names

HEADER, FOOTER = 12, 4  # bytes of TFRecord framing around each record


@dataclass(frozen=True, eq=False)
class Records:
    """The `ClipReader` of record files: the positions of all records, and how to read them.

    kind: the contents of a record, "jpeg" (JPEG images of known size), "picture" (images of any
    format) or "video" (a video file). key: the name of that feature. shards: the paths of the
    files. paths: those of `Videos`. first: int64 [videos + 1], the first record of each video.
    columns: see RECORD_TYPES; crc and frames only for packed records. sizes: int32 [videos, 2],
    height and width. reasons: why a video has no records. format: of `videomae data pack`.
    seconds: float64 [frames of all records], when each frame appears in its video; records may
    then have only a part of its frames. shrunk_to: see `ClipReader`.
    """

    kind: str
    key: str
    shards: tuple[str, ...]
    paths: tuple[str, ...]
    first: np.ndarray
    columns: dict[str, np.ndarray]
    sizes: np.ndarray | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    seconds: np.ndarray | None = None
    shrunk_to: int = 0

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The index of each path. Of equal paths the last: their records are the same."""
        return {path: index for index, path in enumerate(self.paths)}

    def read_clip(self, path: str, choose: Choose, *, channels: int) -> np.ndarray:
        """Return the chosen frames, uint8 [F, H, W, channels], as `decode.read_clip` does."""
        if self.kind != "video":
            return decode_pictures(self.read_pictures(path, choose), channels=channels)
        video = self._find(path)
        records = range(*self.first[[video, video + 1]])
        read = functools.partial(read_clip, channels=channels, indexed=self.format == "mp4")
        if len(records) == 1 and (self.format != "mp4" or not isinstance(choose, ByTime)):
            return read(self._values(records[0])[0], choose)
        indices, record, frame = self._choose(video, choose)
        # Each part is decoded into the whole clip: copying would hold the interpreter's lock.
        clip = np.empty((len(indices), *self.size(path), channels), np.uint8)
        for part in np.unique(record):
            rows = np.flatnonzero(record == part)
            wanted = frame[rows]
            read(self._values(part)[0], functools.partial(_pick, wanted), out=clip, rows=rows)
        return clip

    def read_pictures(self, path: str, choose: Choose) -> list[bytes]:
        """Return the image files of the chosen frames. Raises UnreadableVideo."""
        video = self._find(path)
        if "frames" not in self.columns:
            pictures = self._values(self.first[video])
            if not pictures:
                raise UnreadableVideo("no frames")
            chosen = make_choice(choose, len(pictures), lambda: self._seconds(video))
            return [pictures[index] for index in chosen.tolist()]
        _, record, frame = self._choose(video, choose)
        parts = {part: self._values(part) for part in np.unique(record).tolist()}
        return [parts[r][f] for r, f in zip(record.tolist(), frame.tolist(), strict=True)]

    def spans(self, path: str, choose: Choose) -> list[tuple[str, int, int]]:
        """Return the records of the chosen frames: (file, offset, length)."""
        video = self._find(path)
        records = np.arange(*self.first[[video, video + 1]])
        if len(records) > 1:
            records = np.unique(self._choose(video, choose)[1])
        return [self._span(record) for record in records]

    def size(self, path: str) -> tuple[int, int]:
        """Return height and width of the frames of a packed video. Raises UnreadableVideo."""
        if self.sizes is None:
            raise UnreadableVideo("its records have no size")
        height, width = self.sizes[self._find(path)].tolist()
        return height, width

    def _find(self, path: str) -> int:
        """Return the index of a video. Raises UnreadableVideo if it has no records."""
        video = self.ids[path]
        if self.first[video] == self.first[video + 1]:
            raise UnreadableVideo(self.reasons[path])
        return video

    def _choose(self, video: int, choose: Choose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the chosen frames, and for each its record and its index in that record."""
        first, last = self.first[[video, video + 1]]
        ends = np.cumsum(self.columns["frames"][first:last])
        indices = make_choice(choose, int(ends[-1]), lambda: self._seconds(video))
        part = np.searchsorted(ends, indices, side="right")
        return indices, first + part, indices - np.where(part, ends[part - 1], 0)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The number of frames in all records before each: int64 [records + 1]."""
        return np.concatenate([[0], np.cumsum(self.columns["frames"], dtype=np.int64)])

    def _seconds(self, video: int) -> np.ndarray:
        """Return when the frames of a video appear, and the last one ends, see `ByTime`."""
        if self.seconds is None:
            raise UnreadableVideo("packed without the times of its frames: pack the annotations")
        begin, end = self._starts[self.first[[video, video + 1]]]
        seconds = self.seconds[begin:end]
        # No reader uses when the last one ends.
        return np.append(seconds, seconds[-1])

    def _span(self, record: int) -> tuple[str, int, int]:
        """Return the file of a record, its offset and its length."""
        columns = self.columns
        shard = self.shards[columns["shard"][record]]
        return shard, int(columns["offset"][record]), int(columns["length"][record])

    def _values(self, record: int) -> list[bytes]:
        """Return the values of a record. Raises UnreadableVideo that names file and bytes."""
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


def _pick(wanted: np.ndarray, count: int) -> np.ndarray:
    """Choose known frames, for `read_clip`."""
    return wanted


def open_packed(folder: str) -> Videos:
    """Open the records in a folder of `videomae data pack`, see `sources.open_records`."""
    index, columns = read_index(folder)
    paths = unpack_texts(columns["path"])
    first = np.concatenate([[0], np.cumsum(columns["parts"], dtype=np.int64)])
    shards_used = columns["shard"].max(initial=-1) + 1
    fits = (
        len(paths) == len(columns["label"]) == index["videos"]
        and all(len(columns[key]) == first[-1] for key in RECORD_TYPES)
        and shards_used <= len(index["shards"])
    )
    if not fits:
        raise UserError(f"{join(folder, COLUMNS)} does not fit {INDEX}: pack again")
    shards = [join(folder, shard["name"]) for shard in index["shards"]]
    if is_remote(folder):  # one request for all of them
        there = {join(folder, name) for name in names(folder)}
        gone = [shard for shard in shards if shard not in there]
    else:
        gone = [shard for shard in shards if not os.path.exists(shard)]
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
        seconds=columns["seconds"] if index["version"] == BOX_VERSION else None,
        shrunk_to=0 if format == "original" else index["settings"]["short_side"],
    )
    if index["version"] == BOX_VERSION:
        return Videos(
            paths=tuple(paths[film] for film in columns["film"].tolist()),
            labels=None,
            class_names=tuple(index["class_names"]),
            name=folder,
            reader=records,
            notes=tuple(index["notes"]),
            key_frames=_unpack_key_frames(index, columns),
        )
    return Videos(
        paths=paths,
        labels=columns["label"] if index["labelled"] else None,
        class_names=tuple(index["class_names"]) or None,
        name=folder,
        reader=records,
    )


def _unpack_key_frames(index: dict, columns: dict[str, np.ndarray]) -> KeyFrames:
    return KeyFrames(
        seconds=columns["second"],
        names=unpack_texts(columns["name"]),
        stamps=columns["stamp"],
        offsets=columns["offsets"],
        boxes=columns["boxes"],
        targets=np.unpackbits(columns["targets"], axis=1, count=len(index["class_names"])) > 0,
        scores=columns["scores"],
        persons=columns["persons"],
        notes=tuple(index["notes"]),
        around=math.inf if index["around"] is None else index["around"],
    )


@tf.function(reduce_retracing=True)
def _decode(pictures: tf.Tensor, channels: int) -> tf.Tensor:
    def decode(picture: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_image(picture, channels=channels, expand_animations=False)

    return tf.map_fn(decode, pictures, fn_output_signature=tf.uint8)


def decode_pictures(pictures: list[bytes], *, channels: int) -> np.ndarray:
    """Decode images of one size, in any format: uint8 [F, H, W, channels].

    Raises UnreadableVideo.
    """
    try:
        return _decode(tf.constant(pictures), channels).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UnreadableVideo(f"an image does not decode: {error.message[:80]}") from error
