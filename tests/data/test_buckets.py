"""Videos, lists and records in a bucket are read as those of a disk are."""

import csv
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from buckets import download, upload
from runs import fails
from videos import number, write_classes, write_sound, write_video

from videomae_jax import cli, paths
from videomae_jax.data import storage, unreadable
from videomae_jax.data.annotations import read_key_frames
from videomae_jax.data.decode import UnreadableVideo, open_frames, read_clip, read_duration
from videomae_jax.data.evaluation_batches import eval_batches
from videomae_jax.data.pack import Settings, pack
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.samplers import PretrainSampler
from videomae_jax.data.sources import read_videos
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import split_videos
from videomae_jax.errors import StorageError, StorageUnavailable, UserError

SAMPLE = PretrainSampler(frames=4, stride=2, height=32, width=48, channels=3, train=True)
GOOD = 6


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Six videos of two classes, one that is empty and one without pictures, and their list."""
    folder = tmp_path_factory.mktemp("videos")
    write_classes(folder, (f"{index}.mp4" for index in range(GOOD)))
    (folder / "a" / "empty.mp4").touch()
    write_sound(folder / "b" / "sound.mp4")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))
    (folder / "list.csv").write_text("\n".join(f"{name},{name[0]}" for name in names))
    return folder


@pytest.fixture(params=["gcs", pytest.param("s3", marks=pytest.mark.slow)])
def bucket(request):
    """A folder in either."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def remote(local, bucket) -> str:
    """The same in a bucket."""
    return upload(local, f"{bucket.url}/videos")


def train(videos, *, steps=4, **changes) -> list[dict]:
    bad = BadVideos(videos, max_share=1)
    how = dict(sampler=SAMPLE, batch_size=4, seed=5, start_step=0, bad=bad) | changes
    return list(clip_batches(videos, num_steps=steps, **how))


def same(ones: list[dict], others: list[dict]) -> bool:
    return len(ones) == len(others) and all(
        one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
        for one, other in zip(ones, others, strict=True)
    )


def evaluate(videos, **changes) -> list[dict]:
    how = dict(sampler=SAMPLE, batch_size=4, seed=0, bad=BadVideos(videos, max_share=1)) | changes
    return list(eval_batches(videos, **how))


def faults_of(videos) -> dict[str, str]:
    """Read every video once, and return the reasons of those that cannot be read by name."""
    bad = BadVideos(videos, max_share=1)
    evaluate(videos, bad=bad)
    return {Path(path).name: reason for path, reason in bad.reasons.items()}


@pytest.mark.parametrize("source", ["list.csv", pytest.param("", marks=pytest.mark.slow)])
def test_the_clips_are_those_of_local_files(local, remote, source):
    here, there = read_videos(local / source), read_videos(f"{remote}/{source}".rstrip("/"))
    assert [paths.join(remote, str(Path(path).relative_to(local))) for path in here.paths] == list(
        there.paths
    )
    assert (here.labels == there.labels).all() and here.class_names == there.class_names
    assert same(train(here), train(there)) and same(train(here, repeats=2), train(there, repeats=2))
    assert faults_of(here) == faults_of(there) and len(faults_of(there)) == 2
    split = [split_videos(videos, holdout=0.3, seed=1)[1] for videos in (here, there)]
    assert [Path(path).name for path in split[0].paths] == [Path(p).name for p in split[1].paths]


def test_a_list_may_name_videos_anywhere(local, remote, bucket, tmp_path):
    rows = [f"{remote}/a/0.mp4 0", f"{local}/b/1.mp4 1", "../videos/a/2.mp4 0", "b/none.mp4 0"]
    paths.write_whole(f"{remote}/mixed.csv", "\n".join(rows))
    mixed = read_videos(f"{remote}/mixed.csv")
    assert mixed.paths[:3] == (
        f"{remote}/a/0.mp4",
        str(local / "b/1.mp4"),
        f"{remote}/a/2.mp4",
    )
    for index in range(3):
        assert number(mixed.read_clip(index, lambda count: np.array([3]), channels=3)[0]) == 3
    with pytest.raises(UnreadableVideo, match="^no such object$") as error:
        mixed.read_clip(3, np.arange, channels=3)
    assert not error.value.transient
    (tmp_path / "list.txt").write_text(rows[0])
    assert read_videos(tmp_path / "list.txt").paths == (f"{remote}/a/0.mp4",)
    assert read_videos(f"{remote}/a/0.mp4").paths == (f"{remote}/a/0.mp4",)


def test_a_folder_takes_one_listing_and_a_list_no_request_for_each_row(remote, bucket):
    for name in (".hidden/1.mp4", "a/._2.mp4", "@eaDir/3.mp4", "notes.txt"):
        paths.write_whole(f"{remote}/{name}", b"")
    before = bucket.faults.asked
    videos = read_videos(remote)
    assert len(videos) == GOOD + 2 and bucket.faults.asked - before < 8
    assert "3 hidden, system or circular names skipped" in videos.notes[0]
    paths.write_whole(f"{remote}/long.csv", "".join(f"a/{n}.mp4\n" for n in range(500)))
    before = bucket.faults.asked
    assert len(read_videos(f"{remote}/long.csv")) == 500 and bucket.faults.asked - before < 16


def test_what_is_not_there_is_named_in_one_line(remote):
    with pytest.raises(UserError, match=r"no such list .*; did you mean .*/list.csv\?$"):
        read_videos(f"{remote}/lst.csv")
    with pytest.raises(UserError, match="no such list or folder of videos: .*/nothing"):
        read_videos(f"{remote}/nothing")
    paths.write_whole(f"{remote}/wrong.csv", "x.mp4 0\ny.mp4 1\n")
    with pytest.raises(
        UserError, match="none of the 2 videos in .*wrong.csv exists, first .*x.mp4"
    ):
        read_videos(f"{remote}/wrong.csv")
    with pytest.raises(UserError, match="pigeon://x: only gs:// and s3:// addresses are known"):
        read_videos("pigeon://x")


def test_a_long_film_is_read_in_blocks(gcs, tmp_path, monkeypatch):
    file = write_video(tmp_path / "film.mp4", count=300, width=320, height=240)
    size = Path(file).stat().st_size
    film = f"{upload(tmp_path, gcs.url)}/film.mp4"
    wanted = np.array([280, 5, 150])
    expected = read_clip(file, lambda count: wanted)
    for first, whole in [(size + 1, size + 1), (size // 2, size), (size // 2, size - 1)]:
        monkeypatch.setattr(storage, "FIRST", first)
        monkeypatch.setattr(storage, "WHOLE", whole)
        monkeypatch.setattr(paths, "BLOCK", size // 5)
        assert isinstance(storage.fetch_video(film), str) == (whole < size)
        assert (read_clip(film, lambda count: wanted) == expected).all()
        assert read_duration(film) == read_duration(file)
        with open_frames(film) as (_, read):
            assert [number(picture) for picture in read([7, 290])] == [7, 290]


def settings(format: str) -> Settings:
    return Settings(format, short_side=64, clip_frames=8, quality=20 if format == "mp4" else 95)


def write(videos, folder, *, format="jpeg", **changes) -> dict | None:
    how = dict(shards=3, process_index=0, process_count=1, verify=False, threads=2)
    how |= dict(settings=settings(format), report=lambda done: None) | changes
    return pack(videos, str(folder), **how)


SLOW = [pytest.param(format, marks=pytest.mark.slow) for format in ("original", "mp4")]


@pytest.mark.parametrize("format", ["jpeg", *SLOW])
def test_packing_into_a_bucket_writes_the_bytes_of_packing_to_a_disk(
    local, remote, tmp_path, format
):
    here, there = tmp_path / "packed", f"{remote}/packed"
    index = write(read_videos(local / "list.csv"), here, format=format)
    assert index == write(read_videos(f"{remote}/list.csv"), there, format=format)
    found = download(there)
    assert found == {
        str(path.relative_to(here)): path.read_bytes() for path in here.rglob("*") if path.is_file()
    }
    assert {"index.json", "dataset_info.json", "parts/00002.npz"} <= found.keys()
    assert same(train(read_videos(here)), train(read_videos(there)))
    assert faults_of(read_videos(here)) == faults_of(read_videos(there))


@pytest.mark.slow
def test_packing_goes_on_and_repairs(local, bucket):
    videos, folder = read_videos(local / "list.csv"), f"{bucket.url}/packed"
    assert write(videos, folder, process_count=2) is None
    shards = [name for name in paths.names(folder) if "tfrecord" in name]
    assert len(shards) == 2
    write(videos, folder, process_index=1, process_count=2)
    whole = download(folder)
    bucket.faults.asked, asked = 0, []
    write(videos, folder, report=lambda done: asked.append(done))
    assert download(folder) == whole
    damaged = f"{folder}/{shards[0]}"
    paths.write_whole(damaged, b"\0" * paths.size(damaged))
    write(videos, folder, verify=True)
    assert download(folder) == whole
    paths.remove(damaged)
    with pytest.raises(UserError, match="1 of 3 record files are missing, first .*00000-of-00003"):
        read_videos(folder)


def test_damaged_records_are_named(local, bucket):
    folder = f"{bucket.url}/packed"
    write(read_videos(local / "list.csv"), folder, format="original")
    shard = next(f"{folder}/{name}" for name in paths.names(folder) if "00000-of" in name)
    data = bytearray(paths.read_bytes(shard))
    data[len(data) // 4] ^= 1
    paths.write_whole(shard, bytes(data))
    reasons = faults_of(read_videos(folder))
    assert any("00000-of-00003, bytes" in reason for reason in reasons.values()), reasons


def test_a_bucket_that_denies_ends_in_one_line(remote, bucket):
    videos = read_videos(f"{remote}/list.csv")
    bucket.faults.status = 403
    for attempt in (lambda: train(videos), lambda: read_videos(remote)):
        with pytest.raises(StorageError, match="access denied") as error:
            attempt()
        assert error.value.exit_code == 1 and "\n" not in str(error.value)


def test_a_bucket_that_fails_for_a_while_changes_no_clip(local, remote, bucket):
    videos = read_videos(f"{remote}/list.csv")
    bucket.faults.status, bucket.faults.left = 503, 3
    assert same(train(videos), train(read_videos(local / "list.csv")))
    assert bucket.faults.left <= 0


@pytest.mark.slow  # gcsfs repeats for half a minute
def test_a_bucket_that_stays_away_is_no_unreadable_video(remote, bucket, monkeypatch):
    monkeypatch.setattr(paths, "PATIENCE", 1.0)
    videos = read_videos(f"{remote}/list.csv")
    bucket.faults.status = 503
    bad = BadVideos(videos, max_share=1)
    with pytest.raises(StorageUnavailable, match="cannot be reached") as error:
        train(videos, bad=bad)
    assert error.value.exit_code == 134 and not len(bad)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_many_reads_wait_at_once_and_few_threads_compute(local, gcs, monkeypatch, packed):
    """So that reading ahead hides the time of a request."""
    there = read_videos(f"{upload(local, gcs.url)}/list.csv")
    if packed:
        write(there, f"{gcs.url}/packed", format="jpeg")
        there = read_videos(f"{gcs.url}/packed")
    lock = threading.Lock()
    now, most = dict(read=0, compute=0), dict(read=0, compute=0)

    def counted(what, function):
        def call(*args, **options):
            with lock:
                now[what] += 1
                most[what] = max(most[what], now[what])
            try:
                time.sleep(0.05)
                return function(*args, **options)
            finally:
                with lock:
                    now[what] -= 1

        return call

    monkeypatch.setattr(paths, "read_bytes", counted("read", paths.read_bytes))
    monkeypatch.setattr(PretrainSampler, "crop", counted("compute", PretrainSampler.crop))
    batches = train(there, steps=8, threads=2)
    assert most["compute"] <= 2 and most["read"] >= 8
    most.update(read=0, compute=0)
    many = replace(there, paths=there.paths * 4, labels=None)
    evaluated = evaluate(many, threads=2)
    assert most["compute"] <= 2 and most["read"] >= 8
    monkeypatch.undo()
    assert same(batches, train(there, steps=8, threads=1))
    assert same(evaluated, evaluate(many, threads=1))


def test_unreadable_videos_are_listed_in_a_bucket(remote, bucket, monkeypatch):
    monkeypatch.setattr(unreadable, "PAUSE", 0.3)
    videos, file = read_videos(remote), f"{bucket.url}/bad_videos.csv"
    names = videos.paths

    def rows(file):
        return list(csv.reader(io.StringIO(paths.read_bytes(file).decode())))

    first, second = (
        BadVideos(videos, max_share=1, file=file, process_index=index) for index in range(2)
    )
    before = bucket.faults.asked
    threads = [threading.Thread(target=first.add, args=(path, "a, b")) for path in names[:5]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.faults.asked - before < 5  # rows that wait are written together
    second.add(names[5], "c")
    assert rows(file)[0] == ["path", "reason", "process"]
    assert sorted(rows(file)[1:]) == sorted([path, "a, b", "0"] for path in names[:5])
    assert rows(f"{bucket.url}/bad_videos-00001.csv")[1:] == [[names[5], "c", "1"]]
    resumed = BadVideos(videos, max_share=1, file=file)
    assert resumed.reasons == {**dict.fromkeys(names[:5], "a, b"), names[5]: "c"}
    resumed.add(names[6], "d")
    assert len(rows(file)) == 7 and file in str(resumed)


def test_boxes_in_a_bucket(local, remote):
    text = "0,0.1,0.1,0.2,0.5,0.9,1,0\n3,0.2,0.1,0.2,0.5,0.9,2,0\n"
    (local / "boxes.csv").write_text(text)
    paths.write_whole(f"{remote}/boxes.csv", text)
    here, there = read_key_frames(local / "boxes.csv"), read_key_frames(f"{remote}/boxes.csv")
    assert [Path(path).name for path in here.paths] == ["0.mp4", "3.mp4"]
    assert [path.removeprefix(f"{remote}/") for path in there.paths] == ["a/0.mp4", "b/3.mp4"]
    assert (here.key_frames.boxes == there.key_frames.boxes).all()
    assert here.key_frames.seconds.tolist() == there.key_frames.seconds.tolist()
    assert here.notes == there.notes
    with pytest.raises(UserError, match="no such annotation file"):
        read_key_frames(f"{remote}/none.csv")


@pytest.mark.slow
def test_the_commands_list_check_and_pack(local, remote, capsys):
    out = f"{remote}/lists"
    cli.main(["data", "list", remote, "--out", f"{out}/train.csv", "--val", f"{out}/val.csv"])
    said = capsys.readouterr().out
    assert "folders: 2 classes" in said and f"7 videos in {out}/train.csv" in said
    listed = read_videos(f"{out}/train.csv"), read_videos(f"{out}/val.csv")
    assert {path for videos in listed for path in videos.paths} == set(read_videos(remote).paths)

    numbers = f"{out}/check.json"
    cli.main(["data", "check", f"{remote}/list.csv", "--min-frames=1", "--json", numbers])
    assert "6 of 8 videos are clean" in capsys.readouterr().out
    assert {"clean.csv", "bad.csv", "report.html"} <= set(paths.names(f"{remote}/list_check"))
    assert len(read_videos(f"{remote}/list_check/clean.csv")) == GOOD
    found = json.loads(paths.read_bytes(numbers))
    assert {Path(row["path"]).name: row["reason"] for row in found["bad"]} == faults_of(
        read_videos(local / "list.csv")
    )
    clean = f"{remote}/list_check/clean.csv"
    cli.main(["data", "pack", clean, f"{remote}/packed/", "--json", f"{out}/pack.json"])
    said = capsys.readouterr().out
    assert "6 of 6 videos, 87 frames, in 6 records of 1 files" in said
    assert json.loads(paths.read_bytes(f"{out}/pack.json"))["videos"] == 6
    assert f"--config.data.train={remote}/packed" in said
    said = fails(capsys, "data", "list", f"{remote}x", "--out", "train.csv")
    assert "no such folder or annotation file" in said


def test_official_lists_in_a_bucket(bucket, local, capsys):
    url = bucket.url
    for name in ("brush/v_1.mp4", "brush/v_2.mp4", "walk/v_3.mp4"):
        paths.write_whole(f"{url}/hmdb/{name}", (local / "a/0.mp4").read_bytes())
    lists = f"{url}/hmdb/splits"
    paths.write_whole(f"{lists}/brush_test_split1.txt", "v_1.avi 1\nv_2.avi 2\n")
    paths.write_whole(f"{lists}/walk_test_split1.txt", "v_3.avi 1\nv_4.avi 1\n")
    cli.main(["data", "list", f"{url}/hmdb", "--out", f"{url}/train.csv"])
    said = capsys.readouterr().out
    assert "hmdb51: 2 classes" in said and f"missing: {url}/train.missing.txt" in said
    assert paths.read_bytes(f"{url}/train.missing.txt") == b"walk/v_4.avi\n"
    assert [Path(path).name for path in read_videos(f"{url}/train.csv").paths] == [
        "v_1.mp4",
        "v_3.mp4",
    ]
