"""Packed records give the clips of the videos they were made of, in any order, or say why not."""

import hashlib
import io
import itertools
import json
import os
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from videos import number, numbered, write_broken, write_video

from videomae_jax import cli
from videomae_jax.data import decode
from videomae_jax.data.decode import UnreadableVideo, read_clip
from videomae_jax.data.evaluation_batches import eval_batches
from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.data.pack import Settings, encode_video, pack, part_edges
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.record_index import read_index
from videomae_jax.data.resize import resize_crop
from videomae_jax.data.samplers import PretrainSampler, ViewSampler
from videomae_jax.data.sources import read_videos
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, split_videos
from videomae_jax.errors import UserError

SAMPLE = PretrainSampler(frames=4, stride=2, height=32, width=48, channels=3, train=True)
FORMATS = ("original", "mp4", "jpeg")
GOOD, BAD = 11, 9


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Videos:
    """Eleven videos of 12 to 22 frames and nine unreadable ones, in a manifest with classes."""
    folder = tmp_path_factory.mktemp("videos")
    paths = list(write_broken(folder / "broken"))
    for index in range(GOOD):
        path = folder / f"{index:02}.mp4"
        paths.insert(2 * index, write_video(path, count=12 + index, b_frames=2, shift=17 * index))
    lines = [f"{os.path.relpath(path, folder)},{'ab'[len(path) % 2]}" for path in paths]
    (folder / "list.csv").write_text("\n".join(lines))
    return read_videos(folder / "list.csv")


def write(videos: Videos, folder, *, format: str = "jpeg", **changes) -> dict | None:
    settings = Settings(format, short_side=64, clip_frames=8, quality=20 if format == "mp4" else 95)
    how = dict(shards=3, process_index=0, process_count=1, verify=False, threads=2)
    how |= dict(settings=settings, report=lambda done: None) | changes
    return pack(videos, str(folder), **how)


@pytest.fixture(scope="module")
def packed(videos, tmp_path_factory) -> dict[str, Videos]:
    """The same videos in each format."""
    folders = {format: tmp_path_factory.mktemp(format) for format in FORMATS}
    for format, folder in folders.items():
        index = write(videos, folder, format=format)
        assert (index["videos"], index["unreadable"]) == (GOOD + BAD, BAD)
        assert index["frames"] == sum(range(12, 12 + GOOD))
    return {format: read_videos(folder) for format, folder in folders.items()}


def train(videos: Videos, *, start: int = 0, steps: int, **changes) -> list[dict]:
    bad = BadVideos(videos, max_share=1)
    how = dict(sampler=SAMPLE, batch_size=4, seed=5, bad=bad) | changes
    return list(clip_batches(videos, start_step=start, num_steps=steps, **how))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize("changes", [dict(), dict(repeats=2)])
def test_original_bytes_give_the_batches_of_the_manifest(videos, packed, changes):
    from_files, from_records = (train(v, steps=6, **changes) for v in (videos, packed["original"]))
    assert all(map(same, from_files, from_records)) and len(from_files) == 6
    sample = ViewSampler(frames=4, stride=2, height=32, width=48, channels=3, segments=2, crops=3)
    for v in (videos, packed["original"]):
        bad = BadVideos(v, max_share=1)
        batches = list(eval_batches(v, sampler=sample, batch_size=8, seed=0, bad=bad))
        assert len(bad) == BAD
        if v is videos:
            expected = batches
    assert all(map(same, expected, batches))


@pytest.mark.parametrize("format", FORMATS)
def test_every_frame_is_the_one_asked_for_in_any_order(videos, packed, format):
    records = packed[format]
    assert len(records) == len(videos) and records.class_names == videos.class_names
    assert (records.labels == videos.labels).all()
    for index, path in enumerate(videos.paths):
        assert os.path.basename(records.paths[index]) == os.path.basename(path)
        if "broken" in path:
            reasons = []
            for source in (videos, records):
                with pytest.raises(UnreadableVideo) as caught:
                    source.read_clip(index, np.arange, channels=3)
                reasons.append(str(caught.value))
            assert reasons[0] == reasons[1]
            continue
        order = np.random.default_rng(index).permutation(12)
        clip = records.read_clip(index, lambda count, order=order: order, channels=3)
        assert [number(picture) for picture in clip] == order.tolist()
        last = records.read_clip(index, lambda count: np.array([count - 1]), channels=1)
        assert number(last[0]) == 11 + int(path[-6:-4])
        whole = read_clip(path, lambda count, order=order: order)
        difference = np.abs(clip.astype(int) - whole).mean()
        assert difference == 0 if format == "original" else difference < 6


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_records_are_a_pure_function_of_the_position(packed, format, repeats):
    videos = packed[format]
    straight = train(videos, steps=4, batch_size=8, repeats=repeats)
    resumed = train(videos, start=1, steps=3, batch_size=8, repeats=repeats, threads=1)
    assert all(map(same, straight[1:], resumed)) and len(resumed) == 3
    # The number of processes may change at any step.
    for processes, step in [(2, 0), (4, 1), (2, 3)]:
        how = dict(start=step, steps=1, batch_size=8, repeats=repeats)
        parts = [
            train(videos, process_index=index, process_count=processes, **how)[0]
            for index in range(processes)
        ]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert same(joined, straight[step])
    ids = np.concatenate([batch["id"] for batch in straight])
    assert (ids.reshape(-1, repeats) == ids[::repeats, None]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_records_give_boxes_for_the_device(packed, format):
    batches = train(packed[format], steps=2, sampler=replace(SAMPLE, canvas=(64, 96)))
    for batch, host in zip(batches, train(packed[format], steps=2), strict=True):
        for clip, size, resized in zip(batch["video"], batch["size"], host["video"], strict=True):
            high, wide = size.tolist()
            made = resize_crop(clip, box=(0, 0, wide, high), width=48, height=32)
            assert (made == resized).all() and not clip[:, high:].any()


def test_jpegs_decode_alike_in_the_graph_and_outside(packed):
    videos = packed["jpeg"]
    # With a memory, clips are cut from whole frames, decoded one video at a time.
    outside = replace(videos, memory=FrameMemory(budget=10**9))
    for changes in (dict(), dict(repeats=2), dict(sampler=replace(SAMPLE, channels=1))):
        pairs = (train(source, steps=5, **changes) for source in (videos, outside))
        assert all(map(same, *pairs))


@pytest.mark.parametrize("format", FORMATS)
def test_tensorflow_datasets_reads_the_folder(videos, packed, format):
    builder = tfds.builder_from_directory(packed[format].name)
    assert builder.info.features["label"].names == ["a", "b"]
    examples = list(builder.as_dataset(split="train").as_numpy_iterator())
    numbers = {}
    for example in examples:
        frames = example["frames"] if format == "jpeg" else read_clip(example["video"], np.arange)
        place = int(example["video_id"])
        assert videos.paths[place].endswith(example["path"].decode())
        assert videos.labels[place] == example["label"]
        first = example["first_frame"]
        numbers.setdefault(place, {})[int(first)] = [number(picture) for picture in frames]
    assert len(numbers) == GOOD
    for place, parts in numbers.items():
        assert sum((parts[first] for first in sorted(parts)), []) == list(
            range(12 + int(videos.paths[place][-6:-4]))
        )


class Numbered(tfds.core.GeneratorBasedBuilder):
    """A data set of somebody else's, with PNG frames."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(
            clip=tfds.features.Video(shape=(None, 64, 96, 3)),
            name=tfds.features.Text(),
            label=tfds.features.ClassLabel(names=["low", "high"]),
        )
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(6)), "test": self._generate_examples([9])}

    def _generate_examples(self, numbers):
        for key in numbers:
            frames = [numbered(key * 32 + frame) for frame in range(12 + key)]
            yield key, dict(clip=np.stack(frames), name=f"{key}", label=key // 3 % 2)


def test_a_prepared_data_set_is_read_in_any_order_and_only_the_frames_asked_for(
    tmp_path, monkeypatch
):
    Numbered(data_dir=tmp_path).download_and_prepare()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    folder = tmp_path / "numbered/1.0.0"
    for source, count in [(folder, 6), ("tfds:numbered", 6), ("tfds:numbered@test", 1)]:
        videos = read_videos(source)
        assert len(videos) == count and videos.class_names == ("low", "high")
        decoded = []
        for index in range(count):
            clip = videos.read_clip(index, lambda n: np.array([n - 1, 3]), channels=3)
            last, fourth = map(number, clip)
            key = fourth // 32
            assert (fourth, last) == (key * 32 + 3, key * 32 + 11 + key)
            assert videos.labels[index] == key // 3 % 2
            decoded.append(key)
        assert sorted(decoded) == ([9] if count == 1 else list(range(6)))
    videos = read_videos(folder)
    straight = train(videos, steps=3)
    assert all(map(same, straight[1:], train(videos, start=1, steps=2)))
    with pytest.raises(UserError, match="no split 'val': use train, test"):
        read_videos("tfds:numbered@val")
    with pytest.raises(UserError, match="tensorflow-datasets: Dataset nombered not found"):
        read_videos("tfds:nombered")


def test_a_stopped_packing_goes_on_and_a_finished_one_writes_nothing(videos, tmp_path):
    class Stop(Exception):
        pass

    def stop(done):
        if done == 9:
            raise Stop

    with pytest.raises(Stop):
        write(videos, tmp_path, report=stop)
    with pytest.raises(UserError, match="no videos in|has no index.json"):
        read_videos(tmp_path)
    (first,) = tmp_path.glob("*.tfrecord-*")
    written = first.stat().st_mtime_ns
    index = write(videos, tmp_path)
    assert first.stat().st_mtime_ns == written
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.tfrecord-*")}
    assert write(videos, tmp_path) == index and len(times) == 3
    assert times == {file: file.stat().st_mtime_ns for file in times}
    with pytest.raises(UserError, match="holds records with quality 95, not 50"):
        write(videos, tmp_path, settings=Settings("jpeg", 64, 8, 50))
    with pytest.raises(UserError, match="holds records with source"):
        write(replace(videos, labels=videos.labels[::-1]), tmp_path)


def test_a_part_of_the_index_that_was_cut_short_is_written_again(videos, tmp_path):
    index = write(videos, tmp_path)
    part = tmp_path / "parts" / "00001.npz"
    part.write_bytes(part.read_bytes()[:-30])
    assert write(videos, tmp_path) == index


def test_a_folder_that_cannot_be_written_is_one_line(videos, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write .*taken: Not a directory"):
        write(videos, tmp_path / "taken")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # As on a full disk, but for the words.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(UserError, match="cannot write .*File too large"):
            write(videos, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_processes_share_the_work_and_the_last_writes_the_index(videos, packed, tmp_path):
    assert write(videos, tmp_path, process_index=1, process_count=2) is None
    index = write(videos, tmp_path, process_index=0, process_count=2)
    assert index == json.loads(Path(packed["jpeg"].name, "index.json").read_text())


def test_processes_that_pack_differently_make_no_index(videos, tmp_path):
    other = Settings("jpeg", 64, 8, quality=50)
    assert write(videos, tmp_path, process_index=1, process_count=2, settings=other) is None
    with pytest.raises(UserError, match="holds records with quality 50, not 95"):
        write(videos, tmp_path, process_index=0, process_count=2)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("format", ["jpeg", "mp4"])
def test_damage_is_named_with_its_place_skipped_and_repaired(videos, tmp_path, format):
    write(videos, tmp_path, format=format, shards=2)
    flipped, truncated = sorted(tmp_path.glob("*.tfrecord-*"))
    whole = [file.read_bytes() for file in (flipped, truncated)]
    data = bytearray(whole[0])
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    truncated.write_bytes(whole[1][: len(whole[1]) * 2 // 3])
    records = read_videos(tmp_path)
    bad = BadVideos(records, max_share=1)
    ids = np.concatenate([b["id"] for b in train(records, steps=5, bad=bad)])
    expected = {path for path in records.paths if "broken" in path}
    damaged = {path: why for path, why in bad.reasons.items() if path not in expected}
    assert len(damaged) >= 2
    # Of a damaged video the whole records still serve.
    assert not {records.paths[index] for index in ids} & expected
    where = []
    for why in damaged.values():
        match = re.fullmatch(
            r"(.*), bytes (\d+) to (\d+): (damaged, the checksum differs|truncated at byte (\d+))",
            why,
        )
        where.append(match[1])
        if match[1] == flipped.name:
            assert int(match[2]) <= len(data) // 2 <= int(match[3])
        else:
            assert int(match[5]) == max(int(match[2]), truncated.stat().st_size)
    assert set(where) == {flipped.name, truncated.name} and where.count(flipped.name) == 1
    # max_bad_share 0 refuses, in one line.
    strict = BadVideos(records, max_share=0)
    with pytest.raises(UserError, match="above data.max_bad_share=0"):
        train(records, steps=5, bad=strict)
    # A wrong size is seen at once, a flipped byte when asked for.
    write(videos, tmp_path, format=format, shards=2)
    assert flipped.read_bytes() == data
    index = write(videos, tmp_path, format=format, shards=2, verify=True)
    # By their digests: an mp4 file encoded again has been seen to differ, once in some hundred.
    for file, shard in zip((flipped, truncated), index["shards"], strict=True):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
    repaired = BadVideos(read_videos(tmp_path), max_share=1)
    train(read_videos(tmp_path), steps=5, bad=repaired)
    assert repaired.reasons.keys() == expected


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(version=3), "is of version 3, this program reads 1 and 2: pack again"),
        (dict(shards="many"), "no shards of the right type"),
        (dict(columns_sha256="0"), "index.npz is damaged"),
        (dict(videos=3), "does not fit index.json"),
    ],
)
def test_an_index_is_verified_when_it_is_opened(packed, tmp_path, change, message):
    folder = Path(packed["mp4"].name)
    for file in folder.glob("*.*"):
        (tmp_path / file.name).symlink_to(file)
    index = json.loads((folder / "index.json").read_text())
    (tmp_path / "index.json").unlink()
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match=message):
        read_videos(tmp_path)


def test_an_index_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "index.json").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match="index.json: input/output error$"):
        read_index(str(tmp_path))


def test_a_missing_record_file_is_named(packed, tmp_path):
    folder = Path(packed["mp4"].name)
    for file in sorted(folder.glob("*.*"))[:-1]:
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match="1 of 3 record files are missing, first .*00002-of-00003"):
        read_videos(tmp_path)


def test_a_share_is_held_out_alike(videos, packed):
    for one, other in zip(
        split_videos(videos, holdout=0.3, seed=1),
        split_videos(packed["jpeg"], holdout=0.3, seed=1),
        strict=True,
    ):
        names = [os.path.basename(path) for path in one.paths]
        assert names == [os.path.basename(path) for path in other.paths]
        clip = other.read_clip(
            names.index(next(n for n in names if n < "1")), np.arange, channels=3
        )
        assert len(clip) >= 12


def test_videos_are_cut_into_few_equal_records():
    assert part_edges(300, most=96).tolist() == [0, 75, 150, 225, 300]
    assert part_edges(96, most=96).tolist() == [0, 96]
    assert part_edges(1, most=96).tolist() == [0, 1]
    assert part_edges(97, most=96).tolist() == [0, 48, 97]


def test_a_long_video_is_opened_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", count=100, gop=50)
    scans = []
    scan = decode._scan
    monkeypatch.setattr(decode, "_scan", lambda *given: scans.append(given) or scan(*given))
    video = encode_video(path, settings=Settings("jpeg", 64, 40, 95))
    assert video.frames == (33, 33, 34) and len(scans) == 1
    jpegs = itertools.chain(*video.records)
    pictures = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]
    assert list(map(number, pictures)) == list(range(100))


def test_the_command_packs_and_trains_elsewhere(videos, tmp_path, capsys):
    out = tmp_path / "packed"
    numbers = tmp_path / "numbers.json"
    cli.main(["data", "pack", videos.name, str(out), "--short-side", "64", "--json", str(numbers)])
    said = capsys.readouterr().out
    assert said.startswith(f"{GOOD} of {GOOD + BAD} videos, 187 frames, in {GOOD} records")
    counts = json.loads(numbers.read_text())
    assert counts["bytes"] == sum(file.stat().st_size for file in out.glob("*.tfrecord-*"))
    moved = out.rename(tmp_path / "moved")
    assert len(train(read_videos(moved), steps=1)[0]["video"]) == 4
    for arguments, message in [
        (["--format", "gif"], "format 'gif' is unknown: use jpeg, mp4, original"),
        (["--quality", "0", "--format", "jpeg"], "--quality 0 is out of range: use 1 to 95"),
        (["--quality", "99"], "--quality 99 is out of range: use 0 to 51"),
        (["--shards", "40"], "20 videos in 40 shards by 1 processes: use --shards 1 to 20"),
        (["--process-index", "2"], "--process-index 2 of --process-count 1: use 0 to 0"),
    ]:
        with pytest.raises(SystemExit):
            cli.main(["data", "pack", videos.name, str(out), *arguments])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", "pack", str(moved), str(out)])
    assert "is packed already" in capsys.readouterr().err


@pytest.mark.parametrize("named", [True, False])
def test_videos_of_several_labels_are_packed_and_read_by_others(tmp_path, named):
    for name in "xyz":
        write_video(tmp_path / f"{name}.mp4", count=12)
    labels = ("a|b", "b", "|") if named else ("0|2", "2", "|")
    lines = [f"{name}.mp4,{label}" for name, label in zip("xyz", labels, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    videos = read_videos(tmp_path / "list.csv")
    write(videos, tmp_path / "packed")
    again = read_videos(tmp_path / "packed")
    assert again.labels.dtype == bool and again.class_names == videos.class_names
    np.testing.assert_array_equal(again.labels, videos.labels)
    builder = tfds.builder_from_directory(tmp_path / "packed")
    found = {
        int(example["video_id"]): example["label"].tolist()
        for example in builder.as_dataset(split="train").as_numpy_iterator()
    }
    assert found == ({0: [0, 1], 1: [1], 2: []} if named else {0: [0, 2], 1: [2], 2: []})


def test_an_index_of_before_there_were_several_labels_is_read(packed, tmp_path):
    shutil.copytree(packed["jpeg"].name, tmp_path / "old")
    index = json.loads((tmp_path / "old/index.json").read_text())
    del index["multi_label"]
    (tmp_path / "old/index.json").write_text(json.dumps(index))
    assert read_videos(tmp_path / "old").labels.tolist() == packed["jpeg"].labels.tolist()
