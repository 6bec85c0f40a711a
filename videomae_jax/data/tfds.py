"""Videos in data sets that tensorflow-datasets has prepared."""

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from videomae_jax.data.host_tensorflow import tf
from videomae_jax.data.records import FOOTER, HEADER, Records
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.paths import open_binary


def open_tfds(source: str) -> Videos:
    """Open a prepared data set: `tfds:NAME[@SPLIT]`, or its folder. Raises UserError."""
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
    features = builder.info.features
    key, kind = _video_feature(features, source)
    label = features["label"] if "label" in features else None
    class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None
    shards = tuple(map(os.fspath, builder.info.splits[split].filepaths))
    label_key = None if class_names is None else "label"
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda shard: scan_shard(shard, label_key), shards))
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
        labels=None if class_names is None else labels.astype(np.int32),
        class_names=class_names,
        name=source,
        reader=records,
    )


def _video_feature(features, source: str) -> tuple[str, str]:
    """Return (key, kind) of the feature with the video, see `Records`."""
    import tensorflow_datasets as tfds

    for key, feature in features.items():
        if isinstance(feature, tfds.features.Video):
            return key, "picture"
    if "video" in features and features["video"].np_dtype == np.object_:
        return "video", "video"
    raise UserError(f"{source} has no video among its features {', '.join(features)}")


def scan_shard(path: str, label: str | None) -> np.ndarray:
    """Find the records of a TFRecord file: int64 [records, 3], offset, length and label.

    label: the key of the label feature; without it labels are -1. Only lengths and labels are
    read, not the rest of the contents. Raises UserError for a truncated file.
    """
    rows, offset = [], 0
    with open_binary(path) as file:

        def peek(position: int, size: int) -> bytes:
            file.seek(position)
            return file.read(size)

        while header := peek(offset, HEADER):
            if len(header) < HEADER:
                raise UserError(f"{path} is truncated at byte {offset}: prepare it again")
            size = struct.unpack("<Q", header[:8])[0]
            number = _peek_label(peek, offset + HEADER, label) if label else -1
            rows.append((offset, HEADER + size + FOOTER, number))
            offset += HEADER + size + FOOTER
    return np.array(rows, np.int64).reshape(-1, 3)


def _peek_label(peek: Callable[[int, int], bytes], position: int, key: str) -> int:
    """Return an integer feature of a serialized Example, without reading the other features.

    An Example is one protobuf field of features, each a field of its own. The length before
    each field gives the position of the next one.
    """

    def field(position: int) -> tuple[int, int]:
        """Return (begin, end) of the contents of the field at a position."""
        data = peek(position, HEADER)
        length = shift = 0
        for used, byte in enumerate(data[1:], 2):
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return position + used, position + used + length
        raise UserError(f"no tf.train.Example at byte {position}")

    position, end = field(position)
    while position < end:
        begin, following = field(position)
        name_begin, name_end = field(begin)
        if peek(name_begin, name_end - name_begin) == key.encode():
            value_begin, value_end = field(name_end)
            feature = tf.train.Feature.FromString(peek(value_begin, value_end - value_begin))
            return feature.int64_list.value[0]
        position = following
    return -1
