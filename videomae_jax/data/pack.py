"""Videos -> packed records. Writes what `data.records` reads."""

import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from videomae_jax.data import records
from videomae_jax.data.decode import UnreadableVideo, read_clip
from videomae_jax.data.encode import Mp4Writer, encode_jpegs, shrink
from videomae_jax.data.records import COLUMNS, DATASET, INDEX, SPLIT, VERSION
from videomae_jax.data.storage import exists, join, open_file, read_bytes
from videomae_jax.data.tfds import scan_shard
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

FORMATS = ("jpeg", "mp4", "original")
# Frames that are decoded at once: all of a part would be gigabytes of a large picture.
CHUNK = 32
# Videos in a shard, and shards at most, where the user leaves it to us.
SHARD_VIDEOS, MAX_SHARDS = 128, 1024
PARTS = "parts"  # the folder of the index of each shard


class Settings(NamedTuple):
    """How videos are packed.

    short_side: of the pictures, at most. clip_frames: the most of one record. quality: of
    JPEG, 1 to 95, or the constant rate factor of H.264, 0 to 51. The original files are stored
    as they are, whatever these say.
    """

    format: str
    short_side: int
    clip_frames: int
    quality: int


class PackedVideo(NamedTuple):
    """One video, encoded: the contents of its records, the frames of each, and its size.

    Contents are a file, or a file of each frame. `reason` says why there are none.
    """

    records: tuple[bytes | list[bytes], ...]
    frames: tuple[int, ...]
    height: int
    width: int
    reason: str


def check_settings(settings: Settings) -> None:
    """Raise UserError for settings out of range."""
    limits = {
        "short_side": (2, 4096),
        "clip_frames": (1, 1024),
        "quality": (0, 51) if settings.format == "mp4" else (1, 95),
    }
    if settings.format not in FORMATS:
        raise UserError(f"format {settings.format!r} is unknown: use {', '.join(FORMATS)}")
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value} is out of range: use {low} to {high}")


def pack(
    videos: Videos,
    folder: str,
    *,
    settings: Settings,
    shards: int,
    process_index: int,
    process_count: int,
    verify: bool,
    threads: int,
    report: Callable[[int], None],
) -> dict | None:
    """Write the shards of this process that are not there yet, and the index once all are.

    shards: 0 takes one for each SHARD_VIDEOS videos. verify: compare the bytes of shards that
    are there with their checksums, and write damaged ones again. `report` is given the number
    of videos done after each. Returns the index, or None while shards of other processes are
    missing. A stopped run goes on from its last whole shard.
    """
    check_settings(settings)
    count = len(videos)
    shards = shards or max(process_count, min(MAX_SHARDS, math.ceil(count / SHARD_VIDEOS)))
    if not process_count <= shards <= count:
        raise UserError(
            f"{count} videos in {shards} shards by {process_count} processes: use --shards "
            f"{min(process_count, count)} to {count}"
        )
    plan = _plan(videos, settings, shards)
    edges = np.arange(shards + 1) * count // shards
    done = 0
    for shard in range(process_index, shards, process_count):
        places = range(edges[shard], edges[shard + 1])
        if not _is_whole(folder, shard, plan=plan, verify=verify):
            _write_shard(
                videos,
                folder,
                shard,
                places=places,
                settings=settings,
                plan=plan,
                threads=threads,
                report=lambda n, before=done: report(before + n),
            )
        done += len(places)
        report(done)
    parts = [_read_part(folder, shard, shards) for shard in range(shards)]
    if None in parts:
        return None
    return _write_index(videos, folder, settings=settings, parts=parts)


def encode_video(path: str, *, settings: Settings) -> PackedVideo:
    """Encode a video as `settings` say; one that cannot be read gets no records but a reason."""
    try:
        found, frames, sizes = zip(*_encode_parts(path, settings), strict=True)
        return PackedVideo(found, frames, *sizes[0], reason="")
    except UnreadableVideo as error:
        if error.transient:
            raise UserError(f"{path}: {error}; run the same command again") from error
        return PackedVideo((), (), 0, 0, reason=str(error))


def part_edges(count: int, *, most: int) -> np.ndarray:
    """Where `count` frames are cut into as few equal parts of at most `most`: int64 [parts + 1]."""
    parts = -(-count // most)
    return np.arange(parts + 1) * count // parts


def _encode_parts(path: str, settings: Settings) -> Iterator[tuple]:
    """Each part of a video as (contents, frames, (height, width))."""
    count = 0

    def read(choose_from):
        def choose(total):
            nonlocal count
            count = total
            return choose_from(total)

        return read_clip(path, choose)

    if settings.format == "original":
        size = read(lambda total: np.array([0])).shape[1:3]
        with open(path, "rb") as file:
            yield file.read(), count, size
        return
    mp4 = settings.format == "mp4"
    chunk = read(lambda total: np.arange(min(CHUNK, total)))
    edges = part_edges(count, most=settings.clip_frames)
    size = None
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        pictures, writer = [], None
        for first in range(begin, end, CHUNK):
            last = min(first + CHUNK, end)
            # What the count was found with is not decoded twice where the parts allow it.
            if first > 0 or last > len(chunk):
                chunk = read(lambda _, a=first, b=last: np.arange(a, b))
            frames = shrink(chunk[: last - first], short_side=settings.short_side, even=mp4)
            size = size or frames.shape[1:3]
            if frames.shape[1:3] != size:
                raise UnreadableVideo(
                    f"the picture size changes from {size} to {frames.shape[1:3]}"
                )
            if not mp4:
                pictures += encode_jpegs(frames, quality=settings.quality)
                continue
            if writer is None:
                writer = Mp4Writer(height=size[0], width=size[1], quality=settings.quality)
            writer.add(frames)
        yield writer.finish() if mp4 else pictures, int(end - begin), size


def example_features(settings: dict, class_names: tuple[str, ...]):
    """Return the schema of a record, a `tfds.features.FeaturesDict`.

    The frames of JPEG records are a `Video` that tensorflow-datasets decodes; files stay bytes.
    """
    import tensorflow_datasets as tfds

    if settings["format"] == "jpeg":
        shape = (None, None, None, 3)
        contents = {"frames": tfds.features.Video(shape=shape, encoding_format="jpeg")}
    else:
        contents = {"video": tfds.features.Scalar(np.object_)}
    label = tfds.features.ClassLabel(names=class_names) if class_names else None
    return tfds.features.FeaturesDict(
        contents
        | {
            "label": label or tfds.features.Scalar(np.int64),  # -1 without labels
            "path": tfds.features.Text(),
            "video_id": tfds.features.Scalar(np.int64),  # its place in the source
            "first_frame": tfds.features.Scalar(np.int64),  # of the record, in the video
        }
    )


def _write_shard(
    videos: Videos,
    folder: str,
    shard: int,
    *,
    places: range,
    settings: Settings,
    plan: dict,
    threads: int,
    report: Callable[[int], None],
) -> None:
    """Write one file of records, and then the file that says what is in it."""
    features = example_features(settings._asdict(), videos.class_names or ())
    names = _names(videos)
    name = _shard_name(shard, plan["shards"])
    tf.io.gfile.makedirs(join(folder, PARTS))
    unfinished = join(folder, f"{PARTS}/{name}.unfinished")
    rows = {key: [] for key in records.VIDEO_TYPES}
    frames, reasons = [], []
    # PyAV, Pillow and x264 let go of the interpreter's lock while they compute.
    with tf.io.TFRecordWriter(unfinished) as file, ThreadPoolExecutor(threads) as pool:
        work = pool.map(lambda i: encode_video(videos.paths[i], settings=settings), places)
        for done, (place, video) in enumerate(zip(places, work, strict=True), 1):
            label = -1 if videos.labels is None else int(videos.labels[place])
            first = 0
            for data, count in zip(video.records, video.frames, strict=True):
                contents = (
                    {"frames": list(map(io.BytesIO, data))}
                    if settings.format == "jpeg"
                    else {"video": data}
                )
                example = contents | {
                    "label": label,
                    "path": names[place].encode("utf-8", "surrogateescape"),
                    "video_id": place,
                    "first_frame": first,
                }
                file.write(features.serialize_example(features.encode_example(example)))
                first += count
            frames += video.frames
            reasons.append(video.reason)
            for key, value in zip(
                rows, (label, len(video.records), video.height, video.width), strict=True
            ):
                rows[key].append(value)
            report(done)
    columns, digest, size = _read_back(unfinished)
    columns |= {key: np.array(value, records.VIDEO_TYPES[key]) for key, value in rows.items()}
    columns["frames"] = np.array(frames, np.int32)
    columns["shard"] = np.full(len(frames), shard, np.int32)
    columns["reason"] = records.pack_texts(reasons)
    tf.io.gfile.rename(unfinished, join(folder, name), overwrite=True)
    summary = {"plan": plan, "name": name, "bytes": size, "sha256": digest, "records": len(frames)}
    columns["summary"] = np.frombuffer(json.dumps(summary).encode(), np.uint8)
    _write(_part_name(folder, shard), _npz(columns))


def _read_back(path: str) -> tuple[dict[str, np.ndarray], str, int]:
    """Where the records of a shard lie and their checksums, its digest and its size.

    Read from what was written, so that the framing, too, is under the checksum.
    """
    places = scan_shard(path, None)
    digest, crcs = hashlib.sha256(), []
    with open_file(path) as file:
        for length in places[:, 1].tolist():
            data = file.read(length)
            digest.update(data)
            crcs.append(zlib.crc32(data))
    columns = {
        "offset": places[:, 0],
        "length": places[:, 1],
        "crc": np.array(crcs, np.uint32),
    }
    return columns, digest.hexdigest(), int(places[:, 1].sum())


def _is_whole(folder: str, shard: int, *, plan: dict, verify: bool) -> bool:
    """Whether a shard is there as its part of the index says. Raises where it is of another run."""
    part = _read_part(folder, shard, plan["shards"])
    if part is None:
        return False
    summary = part["summary"]
    for key, value in plan.items():
        if summary["plan"][key] != value:
            raise UserError(
                f"{folder} holds records with {key} {summary['plan'][key]}, not {value}: "
                "pack into another folder"
            )
    path = join(folder, summary["name"])
    if not exists(path) or tf.io.gfile.stat(path).length != summary["bytes"]:
        return False
    if not verify:
        return True
    try:
        return _read_back(path)[1] == summary["sha256"]
    except UserError:
        return False


def _write_index(videos: Videos, folder: str, *, settings: Settings, parts: list[dict]) -> dict:
    """Join the parts into the index of all, and describe them to tensorflow-datasets."""
    keys = [*records.VIDEO_TYPES, *records.RECORD_TYPES, "reason"]
    columns = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    columns["path"] = records.pack_texts(_names(videos))
    data = _npz(columns)
    summaries = [part["summary"] for part in parts]
    index = {
        "version": VERSION,
        "settings": settings._asdict(),
        "labelled": videos.labels is not None,
        "class_names": list(videos.class_names or ()),
        "videos": len(videos),
        "unreadable": int((columns["parts"] == 0).sum()),
        "records": len(columns["shard"]),
        "frames": int(columns["frames"].sum()),
        "bytes": sum(summary["bytes"] for summary in summaries),
        "columns_sha256": hashlib.sha256(data).hexdigest(),
        "shards": [
            {key: summary[key] for key in ("name", "records", "bytes", "sha256")}
            for summary in summaries
        ],
    }
    _write_description(folder, index)
    _write(join(folder, COLUMNS), data)
    # Last: what opens the folder looks for it first.
    _write(join(folder, INDEX), json.dumps(index, indent=1).encode())
    return index


def _write_description(folder: str, index: dict) -> None:
    """Write what `tfds.builder_from_directory` reads."""
    import tempfile

    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as local:
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name=DATASET, version=tfds.core.Version("1.0.0"), data_dir=local, module_name=""
            ),
            features=example_features(index["settings"], tuple(index["class_names"])),
        )
        info.set_file_format("tfrecord")
        split = tfds.core.SplitInfo(
            name=SPLIT,
            shard_lengths=[shard["records"] for shard in index["shards"]],
            num_bytes=index["bytes"],
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=local, dataset_name=DATASET, split=SPLIT, filetype_suffix="tfrecord"
            ),
        )
        info.set_splits(tfds.core.SplitDict([split]))
        info.write_to_directory(local)
        for name in os.listdir(local):
            with open(os.path.join(local, name), "rb") as file:
                _write(join(folder, name), file.read())


def _plan(videos: Videos, settings: Settings, shards: int) -> dict:
    """What every part of one packing has in common."""
    labels = b"" if videos.labels is None else videos.labels.tobytes()
    listed = records.pack_texts(_names(videos)).tobytes() + labels
    return {
        "version": VERSION,
        **settings._asdict(),
        "shards": shards,
        "source": hashlib.sha256(listed).hexdigest()[:16],
    }


def _names(videos: Videos) -> list[str]:
    """The paths below the folder that all videos share, so that records may move."""
    folder = os.path.commonpath([os.path.dirname(path) for path in videos.paths])
    return [os.path.relpath(path, folder) for path in videos.paths]


def _shard_name(shard: int, shards: int) -> str:
    return f"{DATASET}-{SPLIT}.tfrecord-{shard:05}-of-{shards:05}"


def _part_name(folder: str, shard: int) -> str:
    return join(folder, f"{PARTS}/{shard:05}.npz")


def _read_part(folder: str, shard: int, shards: int) -> dict | None:
    """The part of the index for one shard; None where that is not written yet, or damaged."""
    path = _part_name(folder, shard)
    if not exists(path):
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            part = dict(file)
    except (ValueError, OSError, EOFError):
        return None
    part["summary"] = json.loads(part["summary"].tobytes())
    return part


def _npz(columns: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **columns)
    return file.getvalue()


def _write(path: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = f"{path}.unfinished-{os.getpid()}"
    with open_file(unfinished, "wb") as file:
        file.write(data)
    tf.io.gfile.rename(unfinished, path, overwrite=True)
