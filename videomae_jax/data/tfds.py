"""Data sets that tensorflow-datasets has prepared, as videos."""

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from videomae_jax.data.records import FOOTER, HEADER, Records
from videomae_jax.data.storage import open_file

# Its start-up messages are about devices that it is not to use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

from videomae_jax.data.videos import Videos  # noqa: E402
from videomae_jax.errors import UserError  # noqa: E402


def open_tfds(source: str) -> Videos:
    """Open a prepared data set of tensorflow-datasets: by its name, or by its folder."""
    import tensorflow_datasets as tfds

    name, _, split = source.removeprefix("tfds:").partition("@")
    split = split or "train"
    try:
        builder = tfds.builder(name) if source.startswith("tfds:") else None
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"tensorflow-datasets: {str(error).strip().splitlines()[0]}") from None
    if builder is None:
        builder = tfds.builder_from_directory(name)
    if not builder.is_prepared():
        raise UserError(
            f"{source} is not prepared in {builder.data_dir}: run `tfds build {name}`, or set "
            "TFDS_DATA_DIR"
        )
    if split not in builder.info.splits:
        raise UserError(f"{source} has no split {split!r}: use {', '.join(builder.info.splits)}")
    if builder.info.file_format.value != "tfrecord":
        raise UserError(
            f"{source} is stored as {builder.info.file_format.value}: prepare it as tfrecord"
        )
    key, kind = _video_feature(builder.info.features, source)
    features = builder.info.features
    label = features["label"] if "label" in features else None
    classes = isinstance(label, tfds.features.ClassLabel)
    shards = tuple(map(os.fspath, builder.info.splits[split].filepaths))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda s: scan_shard(s, "label" if classes else None), shards))
    counts = [len(rows) for rows in found]
    offset, length, labels = np.concatenate(found).reshape(-1, 3).T
    names = [os.path.basename(shard) for shard in shards]
    paths = tuple(f"{n}#{i}" for n, count in zip(names, counts, strict=True) for i in range(count))
    if not paths:
        raise UserError(f"{source} has no examples in split {split!r}")
    records = Records(
        kind=kind,
        key=key,
        shards=shards,
        paths=paths,
        first=np.arange(len(paths) + 1),
        columns=dict(shard=np.repeat(np.arange(len(shards)), counts), offset=offset, length=length),
    )
    return Videos(
        paths=paths,
        labels=labels.astype(np.int32) if classes else None,
        class_names=tuple(label.names) if classes else None,
        name=source,
        reader=records,
    )


def _video_feature(features, source: str) -> tuple[str, str]:
    """The (key, kind) of the feature that holds the video."""
    import tensorflow_datasets as tfds

    for key, feature in features.items():
        if isinstance(feature, tfds.features.Video):
            return key, "picture"
    if "video" in features and features["video"].np_dtype == np.object_:
        return "video", "video"
    raise UserError(f"{source} has no video among its features {', '.join(features)}")


def scan_shard(path: str, label: str | None) -> np.ndarray:
    """Find the records of a TFRecord file: int64 [records, 3], offset, length and label or -1.

    The contents are skipped: only lengths and labels are read.
    """
    rows, offset = [], 0
    with open_file(path) as file:

        def peek(place: int, size: int) -> bytes:
            file.seek(place)
            return file.read(size)

        while header := peek(offset, HEADER):
            if len(header) < HEADER:
                raise UserError(f"{path} is truncated at byte {offset}: prepare it again")
            size = struct.unpack("<Q", header[:8])[0]
            number = _peek_label(peek, offset + HEADER, size, label) if label else -1
            rows.append((offset, HEADER + size + FOOTER, number))
            offset += HEADER + size + FOOTER
    return np.array(rows, np.int64).reshape(-1, 3)


def _peek_label(peek: Callable, place: int, size: int, key: str) -> int:
    """The integer feature of that name of a serialized Example, without reading the others.

    An Example is one field of features, each a field of its own: the length before each tells
    where the next begins.
    """

    def field(place):
        """The (begin, end) of the contents of the field at a place."""
        data = peek(place, HEADER)
        length = shift = 0
        for used, byte in enumerate(data[1:], 2):
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return place + used, place + used + length
        raise UserError(f"no tf.train.Example at byte {place}")

    place, end = field(place)
    while place < end:
        begin, after = field(place)
        name = slice(*field(begin))
        if peek(name.start, name.stop - name.start) == key.encode():
            feature = tf.train.Feature.FromString(peek(*_span(field(name.stop))))
            return feature.int64_list.value[0]
        place = after
    return -1


def _span(field: tuple[int, int]) -> tuple[int, int]:
    return field[0], field[1] - field[0]
