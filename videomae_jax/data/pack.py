"""Videos -> packed records, which `data.records` reads."""

import hashlib
import io
import itertools
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from videomae_jax.data.decode import check_times, open_frames, read_clip
from videomae_jax.data.encode import Mp4Writer, encode_jpegs, shrink
from videomae_jax.data.host_tensorflow import tf
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.record_index import (
    BOX_VERSION,
    COLUMNS,
    DATASET,
    INDEX,
    RECORD_TYPES,
    SPLIT,
    VERSION,
    VIDEO_TYPES,
    pack_texts,
    read_columns,
    write_columns,
)
from videomae_jax.data.sampling import window_runs
from videomae_jax.data.storage import UnreadableVideo, fetch_video, read_bytes
from videomae_jax.data.tfds import scan_shard
from videomae_jax.data.videos import Videos, group_by_path, relative_names
from videomae_jax.errors import UserError
from videomae_jax.paths import (
    exists,
    is_remote,
    join,
    make_folder,
    open_binary,
    size,
    to_write,
    write_whole,
    writing,
)

FORMATS = ("jpeg", "mp4", "original")
# Default number of videos in a shard, and the largest default number of shards.
SHARD_VIDEOS, MAX_SHARDS = 128, 1024
PARTS = "parts"  # the folder with the part of the index of each shard


class Settings(NamedTuple):
    """How videos are packed.

    short_side: of the frames in pixels, at most. clip_frames: frames of one record, at most.
    quality: of JPEG, 1 to 95, or the constant rate factor of H.264, 0 to 51. Format "original"
    stores the files unchanged and ignores the other settings.
    """

    format: str
    short_side: int
    clip_frames: int
    quality: int


class PackedVideo(NamedTuple):
    """One encoded video: the contents of its records, the number of frames of each, and its size.

    The contents are a video file, or a JPEG file for each frame. reason: why there are none.
    seconds: float64 [frames], when each appears; empty for format "original".
    """

    records: tuple[bytes | list[bytes], ...]
    frames: tuple[int, ...]
    height: int
    width: int
    reason: str
    seconds: np.ndarray


class _Part(NamedTuple):
    """One record of a video; size: height and width. seconds: see `PackedVideo`."""

    contents: bytes | list[bytes]
    frames: int
    size: tuple[int, int]
    seconds: np.ndarray = np.empty(0)


class _Windows(NamedTuple):
    """The parts of a video to store: `around` seconds on both sides of `times`, float64 [n]."""

    times: np.ndarray
    around: float


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
    around: float = math.inf,
) -> dict | None:
    """Write the missing shards of this process and, when no shard is missing, the index.

    shards: 0 means one for each SHARD_VIDEOS videos. verify: compare the bytes of existing
    shards with their checksums, and write damaged ones again. `report` is called with the number
    of videos done. Returns the index, or None while shards of other processes are missing. A
    stopped run resumes after its last complete shard. Raises UserError for settings out of
    range, for a folder with records of other settings or other videos, and for one that cannot be
    written.
    around: of key frames, how many seconds of the video are stored on both sides of each; the
    index then has them and their boxes. Not for format "original".
    """
    check_settings(settings)
    if settings.format == "original":
        around = math.inf
    annotated = videos
    windows: list[_Windows | None] = [None] * len(videos)
    if videos.key_frames is not None:
        videos, windows = _list_films(videos, around)
    count = len(videos)
    shards = shards or max(process_count, min(MAX_SHARDS, math.ceil(count / SHARD_VIDEOS)))
    if not process_count <= shards <= count:
        raise UserError(
            f"{count} videos in {shards} shards by {process_count} processes: use --shards "
            f"{min(process_count, count)} to {count}"
        )
    plan = _plan(videos, settings, shards, windows)
    edges = np.arange(shards + 1) * count // shards
    done = 0

    def report_written(written: int) -> None:
        report(done + written)

    with _writing(folder):
        for shard in range(process_index, shards, process_count):
            indices = range(edges[shard], edges[shard + 1])
            if not _is_complete(folder, shard, plan=plan, verify=verify):
                _write_shard(
                    videos,
                    folder,
                    shard,
                    indices=indices,
                    windows=windows,
                    settings=settings,
                    plan=plan,
                    threads=threads,
                    report=report_written,
                )
            done += len(indices)
            report(done)
        found = [_read_part(folder, shard, plan=plan) for shard in range(shards)]
        parts = [part for part in found if part is not None]
        if len(parts) < shards:
            return None
        return _write_index(
            videos, folder, settings=settings, parts=parts, annotated=annotated, around=around
        )


@contextmanager
def _writing(folder: str) -> Iterator[None]:
    """Make a UserError of an error of the body, which writes to a folder."""
    try:
        with writing(folder):
            yield
    except tf.errors.OpError as error:  # of the record files
        raise UserError(f"cannot write {folder}: {error.message}") from None


def _list_films(videos: Videos, around: float) -> tuple[Videos, list["_Windows | None"]]:
    """Return the videos of key frames, each once, and which parts of them to store."""
    assert videos.key_frames is not None
    films = group_by_path(videos.paths)
    seconds = videos.key_frames.seconds
    windows: list[_Windows | None] = [_Windows(seconds[rows], around) for rows in films.values()]
    return replace(videos, paths=tuple(films), class_names=None, key_frames=None), windows


def encode_video(path: str, *, settings: Settings, windows: _Windows | None = None) -> PackedVideo:
    """Encode a video; one that cannot be read has no records, but a reason.

    windows: the parts of it to store, None for all of it. Raises UserError for an input-output
    error, after which packing can be repeated.
    """
    try:
        source = fetch_video(path)
        if settings.format == "original":
            parts = [_read_original(source)]
        else:
            found = _read_parts(source, windows, most=settings.clip_frames)
            parts = [_encode_part(*part, settings) for part in found]
    except UnreadableVideo as error:
        if error.transient:
            raise UserError(f"{path}: {error}; run the same command again") from error
        return PackedVideo((), (), 0, 0, reason=str(error), seconds=np.empty(0))
    height, width = parts[0].size
    return PackedVideo(
        records=tuple(part.contents for part in parts),
        frames=tuple(part.frames for part in parts),
        height=height,
        width=width,
        reason="",
        seconds=np.concatenate([part.seconds for part in parts]),
    )


def part_edges(count: int, *, most: int) -> np.ndarray:
    """Divide `count` frames into as few equal parts as possible, of at most `most` frames.

    Returns the first frame of each part, and `count`: int64 [parts + 1].
    """
    parts = -(-count // most)
    return np.arange(parts + 1) * count // parts


def _read_original(source: str | bytes) -> _Part:
    """Return a file unchanged. Raises UnreadableVideo."""
    counts = []

    def choose(count: int) -> np.ndarray:
        counts.append(count)
        return np.array([0])

    first = read_clip(source, choose)
    data = source if isinstance(source, bytes) else read_bytes(source)
    return _Part(data, counts[0], _size(first))


def _read_parts(
    source: str | bytes, windows: _Windows | None, *, most: int
) -> Iterator[tuple[np.ndarray, Iterator[np.ndarray]]]:
    """Yield the times and the frames of each part, of at most `most` frames, in one pass.

    windows: see `encode_video`. Raises UnreadableVideo.
    """
    with open_frames(source) as (seconds, read):
        runs = [np.arange(len(seconds) - 1)]
        if windows:
            runs = window_runs(check_times(seconds), windows.times, around=windows.around)
        parts = [
            part for run in runs for part in np.split(run, part_edges(len(run), most=most)[1:-1])
        ]
        pictures = read(np.concatenate(parts).tolist())
        for part in parts:
            yield seconds[part], itertools.islice(pictures, len(part))


def _encode_part(seconds: np.ndarray, pictures: Iterator[np.ndarray], settings: Settings) -> _Part:
    """Encode one record. seconds, pictures: of its frames. Raises UnreadableVideo."""
    mp4 = settings.format == "mp4"
    jpegs: list[bytes] = []
    writer = None
    size = 0, 0
    for picture in pictures:
        frame = shrink(picture[None], short_side=settings.short_side, even=mp4)
        size = _size(frame)
        if mp4:
            writer = writer or Mp4Writer(height=size[0], width=size[1], quality=settings.quality)
            writer.add(frame)
        else:
            jpegs += encode_jpegs(frame, quality=settings.quality)
    return _Part(writer.finish() if writer else jpegs, len(seconds), size, seconds)


def _size(frames: np.ndarray) -> tuple[int, int]:
    """Return the height and the width of frames [F, H, W, C]."""
    return frames.shape[1], frames.shape[2]


def example_features(settings: dict, class_names: tuple[str, ...], *, multi_label: bool):
    """Return the schema of a record, a `tfds.features.FeaturesDict`.

    multi_label: whether "label" is a list of labels. tensorflow-datasets decodes the frames of
    JPEG records; video files stay bytes.
    """
    import tensorflow_datasets as tfds

    if settings["format"] == "jpeg":
        shape = (None, None, None, 3)
        contents = {"frames": tfds.features.Video(shape=shape, encoding_format="jpeg")}
    else:
        contents = {"video": tfds.features.Scalar(np.object_)}
    label = tfds.features.Scalar(np.int64)  # -1 without labels
    if class_names:
        label = tfds.features.ClassLabel(names=class_names)
    return tfds.features.FeaturesDict(
        contents
        | {
            "label": tfds.features.Sequence(label) if multi_label else label,
            "path": tfds.features.Text(),
            "video_id": tfds.features.Scalar(np.int64),  # its index in the source
            "first_frame": tfds.features.Scalar(np.int64),  # of the record, in the video
        }
    )


def _write_shard(
    videos: Videos,
    folder: str,
    shard: int,
    *,
    indices: range,
    windows: Sequence[_Windows | None],
    settings: Settings,
    plan: dict,
    threads: int,
    report: Callable[[int], None],
) -> None:
    """Write one file of records, then its part of the index."""
    features = example_features(
        settings._asdict(), videos.class_names or (), multi_label=videos.multi_label
    )
    names = relative_names(videos)
    labels = np.full(len(videos), -1, np.int32) if videos.labels is None else videos.labels
    name = _shard_name(shard, plan["shards"])
    make_folder(join(folder, PARTS))
    rows: list[tuple[int, int, int]] = []  # parts, height and width
    frames: list[int] = []
    seconds: list[np.ndarray] = []
    reasons: list[str] = []
    # PyAV, Pillow and x264 release the interpreter's lock while they compute.
    with _written(folder, name) as shard_file:
        with tf.io.TFRecordWriter(shard_file) as file, ThreadPoolExecutor(threads) as pool:

            def encode(index: int) -> PackedVideo:
                return encode_video(videos.paths[index], settings=settings, windows=windows[index])

            work = pool.map(encode, indices)
            for index, video in zip(indices, work, strict=True):
                row = labels[index]
                label = np.flatnonzero(row).tolist() if videos.multi_label else int(row)
                for example in _examples(video, index=index, label=label, name=names[index]):
                    file.write(features.serialize_example(features.encode_example(example)))
                rows.append((len(video.records), video.height, video.width))
                frames += video.frames
                seconds.append(video.seconds)
                reasons.append(video.reason)
                report(len(rows))
        columns, digest, nbytes = _read_back(shard_file)
    columns["label"] = labels[indices]
    for key, column in zip(("parts", "height", "width"), zip(*rows, strict=True), strict=True):
        columns[key] = np.array(column, VIDEO_TYPES[key])
    columns["frames"] = np.array(frames, np.int32)
    columns["shard"] = np.full(len(frames), shard, np.int32)
    if windows[0]:
        columns["seconds"] = np.concatenate(seconds)
    columns["reason"] = pack_texts(reasons)
    counts = {"bytes": nbytes, "records": len(frames)}
    summary = {"plan": plan, "name": name, "sha256": digest, **counts}
    columns["summary"] = np.frombuffer(json.dumps(summary).encode(), np.uint8)
    write_whole(_part_name(folder, shard), write_columns(columns))


@contextmanager
def _written(folder: str, name: str) -> Iterator[str]:
    """Yield the local path to write a shard to, which has its place and name afterwards."""
    if is_remote(folder):
        with to_write(join(folder, name)) as local:
            yield str(local)
        return
    unfinished = join(folder, f"{PARTS}/{name}.unfinished")
    yield unfinished
    os.replace(unfinished, join(folder, name))


def _examples(
    video: PackedVideo, *, index: int, label: int | list[int], name: str
) -> Iterator[dict]:
    """Yield the records of a video, see `example_features`."""
    first = 0
    for contents, count in zip(video.records, video.frames, strict=True):
        if isinstance(contents, bytes):
            example: dict = {"video": contents}
        else:
            example = {"frames": [io.BytesIO(jpeg) for jpeg in contents]}
        yield example | {
            "label": label,
            "path": name.encode("utf-8", "surrogateescape"),
            "video_id": index,
            "first_frame": first,
        }
        first += count


def _read_back(path: str) -> tuple[dict[str, np.ndarray], str, int]:
    """Return the columns of the records of a shard, its digest and its size in bytes.

    They are read from the file, so that the checksums include the framing.
    """
    offset, length, _ = scan_shard(path, None).T
    digest, crcs = hashlib.sha256(), []
    with open_binary(path) as file:
        for count in length.tolist():
            data = file.read(count)
            digest.update(data)
            crcs.append(zlib.crc32(data))
    columns = {"offset": offset, "length": length, "crc": np.array(crcs, np.uint32)}
    return columns, digest.hexdigest(), int(length.sum())


def _is_complete(folder: str, shard: int, *, plan: dict, verify: bool) -> bool:
    """Return whether a shard agrees with its part of the index. Raises as `_read_part` does."""
    part = _read_part(folder, shard, plan=plan)
    if part is None:
        return False
    summary = part["summary"]
    path = join(folder, summary["name"])
    if not exists(path) or size(path) != summary["bytes"]:
        return False
    if not verify:
        return True
    try:
        return _read_back(path)[1] == summary["sha256"]
    except UserError:
        return False


def _write_index(
    videos: Videos,
    folder: str,
    *,
    settings: Settings,
    parts: list[dict],
    annotated: Videos,
    around: float,
) -> dict:
    """Join the parts into one index, and write the metadata of tensorflow-datasets.

    annotated: the key frames of these videos, or the videos themselves.
    """
    keys = [*VIDEO_TYPES, *RECORD_TYPES, "reason"]
    columns = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    columns["path"] = pack_texts(relative_names(videos))
    if annotated.key_frames is not None:
        columns["seconds"] = np.concatenate([part["seconds"] for part in parts])
        columns |= _pack_key_frames(annotated, annotated.key_frames)
    data = write_columns(columns)
    summaries = [part["summary"] for part in parts]
    index = {
        "version": VERSION,
        "settings": settings._asdict(),
        "labelled": videos.labels is not None,
        "multi_label": videos.multi_label,
        "class_names": list(annotated.class_names or ()),
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
    if annotated.key_frames is not None:
        index |= {
            "version": BOX_VERSION,
            "around": around if math.isfinite(around) else None,
            "key_frames": len(annotated),
            "notes": list(annotated.notes),
        }
    _write_description(folder, index, class_names=videos.class_names or ())
    write_whole(join(folder, COLUMNS), data)
    # Last, because its existence marks the folder as complete.
    write_whole(join(folder, INDEX), json.dumps(index, indent=1).encode())
    return index


def _pack_key_frames(videos: Videos, frames: KeyFrames) -> dict[str, np.ndarray]:
    """Return the columns of KEY_TYPES without "seconds"."""
    films = {path: film for film, path in enumerate(dict.fromkeys(videos.paths))}
    return {
        "film": np.array([films[path] for path in videos.paths], np.int32),
        "second": frames.seconds,
        "stamp": frames.stamps,
        "offsets": frames.offsets,
        "boxes": frames.boxes,
        "targets": np.packbits(frames.targets, axis=1),
        "scores": frames.scores,
        "persons": frames.persons,
        "name": pack_texts(frames.names),
    }


def _write_description(folder: str, index: dict, *, class_names: tuple[str, ...]) -> None:
    """Write the metadata that `tfds.builder_from_directory` reads."""
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as local:
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name=DATASET, version=tfds.core.Version("1.0.0"), data_dir=local, module_name=""
            ),
            features=example_features(
                index["settings"], class_names, multi_label=index["multi_label"]
            ),
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
                write_whole(join(folder, name), file.read())


def _plan(
    videos: Videos, settings: Settings, shards: int, windows: Sequence[_Windows | None]
) -> dict:
    """Return what all parts of one packing have in common."""
    labels = b"" if videos.labels is None else videos.labels.tobytes()
    listed = pack_texts(relative_names(videos)).tobytes() + labels
    # Of key frames only the moments: boxes and actions are in the index alone.
    listed += b"".join(part.times.tobytes() + str(part.around).encode() for part in windows if part)
    return {
        "version": VERSION,
        **settings._asdict(),
        "shards": shards,
        "source": hashlib.sha256(listed).hexdigest()[:16],
    }


def _shard_name(shard: int, shards: int) -> str:
    return f"{DATASET}-{SPLIT}.tfrecord-{shard:05}-of-{shards:05}"


def _part_name(folder: str, shard: int) -> str:
    return join(folder, f"{PARTS}/{shard:05}.npz")


def _read_part(folder: str, shard: int, *, plan: dict) -> dict | None:
    """Return the part of the index for one shard; None if it is missing or damaged.

    Raises UserError for one that was packed with another plan.
    """
    path = _part_name(folder, shard)
    if not exists(path):
        return None
    try:
        part = read_columns(read_bytes(path))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    summary = json.loads(part["summary"].tobytes())
    for key, value in plan.items():
        if summary["plan"][key] != value:
            raise UserError(
                f"{folder} holds records with {key} {summary['plan'][key]}, not {value}: "
                "pack into another folder"
            )
    return part | {"summary": summary}
