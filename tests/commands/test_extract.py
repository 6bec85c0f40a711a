"""Features of whole videos: the windows, their times, and no difference after a kill."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import jax
import numpy as np
import pytest
from pyarrow import parquet
from runs import CLIPS, ROOT, fails
from videos import number, write_broken, write_video

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.decode import UnreadableVideo, read_clip
from videomae_jax.data.sources import read_videos
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.sharding import make_mesh
from videomae_jax.inference import resumable
from videomae_jax.inference.engine import predict_windows
from videomae_jax.inference.network import build_network
from videomae_jax.inference.windows import Window, WindowSampler, read_windows
from videomae_jax.tasks import classify, pretrain
from videomae_jax.training.checkpoint import save_params

TINY = [
    "--config.clip.frames=4",
    "--config.clip.stride=2",
    *(f"--config.clip.{side}=32" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    config = load_config("pretrain:tiny,custom", TINY)
    save_params(str(folder), pretrain.build_task(config).init(jax.random.key(0)), config)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Videos of 100, 3 and 30 frames, the last of uneven times, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "long.mp4", count=100)
    write_video(folder / "short.mp4", count=3, shift=50)
    times = np.cumsum(1 + np.arange(30) % 3)
    write_video(folder / "uneven.mkv", count=30, shift=90, times=times)
    (folder / "bad.mp4").write_text("not a video")
    names = ["long.mp4", "bad.mp4", "short.mp4", "uneven.mkv", "gone.mp4"]
    (folder / "list.csv").write_text("\n".join(names))
    return folder / "list.csv"


def extract(videos, checkpoint, out, *more):
    command = ["extract", videos, "--checkpoint", checkpoint, "--out", out, *more]
    cli.main(list(map(str, command)))
    return dict(np.load(out)) if out.exists() and out.suffix == ".npz" else None


def crop(path, frames):
    """Frames of a 96 x 64 video as the checkpoint's clips: the centre, 32 x 32."""
    from videomae_jax.data.samplers import resize_crop

    clip = read_clip(str(path), lambda count: frames)
    return resize_crop(clip, box=(16, 0, 64, 64), width=32, height=32)


@pytest.mark.parametrize("pool", ["clip", "time", "tokens"])
def test_rows_are_what_the_python_interface_makes_of_the_same_windows(
    checkpoint, manifest, tmp_path, pool, capsys
):
    found = extract(manifest, checkpoint, tmp_path / "x.npz", "--hop=24", f"--pool={pool}")
    said = capsys.readouterr().out
    assert found["video"].tolist() == [0] * 5 + [2] + [3] * 2
    assert found["first_frame"].tolist() == [0, 24, 48, 72, 92, 0, 0, 22]
    assert found["last_frame"].tolist() == [6, 30, 54, 78, 98, 2, 6, 28]
    assert [path.rpartition("/")[2] for path in found["paths"]] == [
        "long.mp4",
        "bad.mp4",
        "short.mp4",
        "uneven.mkv",
        "gone.mp4",
    ]
    model = vm.load(checkpoint)
    for row, number_ in enumerate(found["video"]):
        first, last = found["first_frame"][row], found["last_frame"][row]
        frames = np.minimum(np.arange(first, first + 7, 2), last)
        clip = crop(found["paths"][number_], frames)[None]
        tokens = np.asarray(model.tokens(clip))[0]
        if pool == "clip":
            expected = np.asarray(model.features(clip))[0]
        else:
            expected = tokens.reshape(2, -1, 128).mean(1) if pool == "time" else tokens
        assert found["features"].dtype == np.float32
        np.testing.assert_allclose(found["features"][row], expected, atol=1e-5)
    assert "1 videos are shorter than a window of 7 frames" in said
    assert "2 of 5 videos unreadable" in said
    listed = (tmp_path / "x.npz.unreadable.csv").read_text()
    assert "bad.mp4" in listed and "gone.mp4" in listed
    assert not (tmp_path / "x.npz.parts").exists()


def test_times_are_those_of_the_file(checkpoint, manifest, tmp_path):
    found = extract(manifest, checkpoint, tmp_path / "x.npz", "--hop=24")
    at = np.cumsum(1 + np.arange(30) % 3) / 30
    seconds = at - at[0]
    last_two = slice(-2, None)
    np.testing.assert_allclose(found["start"][last_two], [0, seconds[22]], atol=2e-3)
    np.testing.assert_allclose(found["end"][last_two], [seconds[7], seconds[29]], atol=2e-3)
    np.testing.assert_allclose(found["start"][:2], [0, 24 / 30], atol=1e-6)
    np.testing.assert_allclose(found["end"][4], 99 / 30, atol=1e-6)


def test_a_parquet_file_has_the_same_rows(checkpoint, manifest, tmp_path):
    more = ("--hop=24", "--pool=time")
    found = extract(manifest, checkpoint, tmp_path / "x.npz", *more)
    extract(manifest, checkpoint, tmp_path / "x.parquet", *more)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert json.loads(table.schema.metadata[b"facts"]) == json.loads(str(found["facts"]))
    rows = table.to_pydict()
    assert rows["path"] == [found["paths"][number] for number in found["video"]]
    for name in ("video", "start", "end", "first_frame", "last_frame", "features"):
        np.testing.assert_array_equal(np.array(rows[name], found[name].dtype), found[name])


@pytest.mark.parametrize("task", ["pretrain", pytest.param("classify", marks=pytest.mark.slow)])
def test_rows_do_not_depend_on_the_batch_or_the_devices(manifest, task):
    recipe = {"pretrain": "pretrain", "classify": "finetune"}[task]
    config = load_config(f"{recipe}:tiny,custom", TINY).unlock()
    if task == "classify":
        config.model.classes = 3
    build = {"pretrain": pretrain, "classify": classify}[task].build_task
    params = build(config).init(jax.random.key(0))
    videos = read_videos(manifest)
    sample = WindowSampler(frames=4, stride=2, hop=5, height=32, width=32, channels=3)

    def compute(devices, batch_size, name):
        windows = read_windows(
            videos,
            [0, 1, 2, 3],
            sampler=sample,
            first=0,
            bad=BadVideos(videos, max_share=1.0),
            threads=devices,
        )
        rows, features = [], []
        for more, values in predict_windows(
            build_network(config),
            params,
            windows,
            name=name,
            batch_size=batch_size,
            mesh=make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices]),
        ):
            rows += [(number, window.number) for number, window in more]
            features.append(values)
        return rows, np.concatenate(features)

    name = "features" if task == "classify" else "tokens"
    rows, alone = compute(1, 1, name)
    assert rows == [*((0, n) for n in range(20)), (2, 0), *((3, n) for n in range(6))]
    for devices, batch_size in ((1, 7), (3, 3), (3, 12)):
        again, features = compute(devices, batch_size, name)
        assert again == rows
        np.testing.assert_array_equal(features, alone)


RUN = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 8)
from videomae_jax import cli
from videomae_jax.inference import resumable
resumable.SECONDS = 0.0  # a file for each batch
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "number_", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_command_goes_on_and_changes_no_bit(
    checkpoint, tmp_path, number_, monkeypatch, capsys
):
    write_video(tmp_path / "a.mp4", count=900)
    write_video(tmp_path / "b.mp4", count=40, shift=9)
    arguments = ["extract", tmp_path, "--checkpoint", checkpoint, "--hop=2", "--batch-size=8"]
    arguments = [*map(str, arguments), f"--out={tmp_path}/x.npz"]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    folder, deadline = tmp_path / "x.npz.parts", time.monotonic() + 200
    while len(list(folder.glob("[0-9]*.npz"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number_)
    said, _ = process.communicate()
    assert process.returncode == (42 if number_ == signal.SIGTERM else -9)
    assert ("the same command resumes" in said) == (number_ == signal.SIGTERM)
    assert not (tmp_path / "x.npz").exists()

    saved = {file: file.stat().st_mtime_ns for file in folder.glob("[0-9]*.npz")}
    rows = sum(len(np.load(file)["video"]) for file in saved)
    assert 24 <= rows < 464
    with monkeypatch.context() as patch:
        patch.setattr(resumable.Parts, "remove", lambda self: None)
        cli.main(arguments)
    assert all(file.stat().st_mtime_ns == written for file, written in saved.items())
    found = dict(np.load(tmp_path / "x.npz"))
    shutil.rmtree(folder)
    (tmp_path / "x.npz").unlink()
    cli.main(arguments)
    straight = dict(np.load(tmp_path / "x.npz"))
    assert found.keys() == straight.keys() and len(found["video"]) == 447 + 17
    for name, array in straight.items():
        np.testing.assert_array_equal(found[name], array)


def test_parts_of_another_command_are_refused(checkpoint, manifest, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.npz"

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("videomae_jax.inference.extract.predict_windows", stop)
        with pytest.raises(SystemExit, match="130"):
            extract(manifest, checkpoint, out, "--hop=24")
    command = ["extract", manifest, "--checkpoint", checkpoint, "--out", out]
    said = fails(capsys, *command, "--hop=12")
    assert "holds results of hop 24, this command has 12: use another --out, or remove" in said
    extract(manifest, checkpoint, out, "--hop=24")
    assert f"{out} exists" in fails(capsys, *command, "--hop=24")


def test_processes_share_the_videos(checkpoint, manifest, tmp_path):
    whole = extract(manifest, checkpoint, tmp_path / "x.npz", "--hop=24")
    videos, rows = [], []
    for index in range(2):
        share = [f"--process-index={index}", "--process-count=2"]
        extract(manifest, checkpoint, tmp_path / "y.npz", "--hop=24", *share)
        with np.load(tmp_path / f"y-{index:05}-of-00002.npz") as found:
            assert set(found["video"]) == [{0, 2}, {3}][index]
            videos += found["video"].tolist()
            rows.append(found["features"])
    order = np.argsort(videos, kind="stable")
    assert sorted(videos) == whole["video"].tolist()
    np.testing.assert_array_equal(np.concatenate(rows)[order], whole["features"])


def test_mistakes_are_one_line(checkpoint, manifest, tmp_path, capsys, monkeypatch):
    def said(*more, out="x.npz", videos=manifest):
        command = ["extract", videos, "--checkpoint", checkpoint, "--out", tmp_path / out]
        return fails(capsys, *command, *more)

    assert "does not end in .npz or .parquet" in said(out="x.csv")
    assert "frames 5 is not a multiple of the patch's 2: use 4 or 6" in said("--window=5")
    assert "windows of hop 0: use 1 or more" in said("--hop=0")
    assert "batch 12 is not divisible by 8 devices: use 8" in said("--batch-size=12")
    assert "give both, an index from 0" in said("--process-index=1")
    assert "has no ema" in said("--ema")
    nothing = manifest.parent / "nothing.csv"
    nothing.write_text("bad.mp4")
    assert "nothing to write: 1 of 1 videos unreadable" in said(videos=nothing)
    cli.main(["data", "pack", str(manifest), str(tmp_path / "packed"), "--format=original"])
    assert "holds records, which have no time stamps" in said(videos=tmp_path / "packed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'videomae_jax[parquet]'" in said(out="x.parquet")


def test_a_preset_is_window_stride_and_hop(checkpoint, tmp_path):
    clip = CLIPS / "val/walk/walk_000.mp4"  # one video, 48 frames
    found = extract(clip, checkpoint, tmp_path / "x.npz", "--preset=thumos14")
    assert found["first_frame"].tolist() == list(range(0, 33, 4))
    assert (found["last_frame"] - found["first_frame"] == 15).all()
    found = extract(clip, checkpoint, tmp_path / "y.npz", "--preset=fineaction", "--hop=20")
    assert found["first_frame"].tolist() == [0, 20, 32]


def test_a_long_video_is_never_held_whole(tmp_path):
    path = write_video(tmp_path / "long.mp4", count=700)
    sample = WindowSampler(frames=4, stride=2, hop=3, height=64, width=96, channels=3)
    list(sample(path, 230))  # imports and caches
    tracemalloc.start()
    seen = [(w.number, [number(picture) for picture in w.clip]) for w in sample(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen[100] == (100, [300, 302, 304, 306]) and seen[-1][1][-1] == 698
    assert peak < 3e6 < 700 * 64 * 96 * 3 / 4, peak


def test_a_video_that_breaks_off_is_listed_and_retried_where_that_helps(tmp_path):
    class Sample:
        """Breaks after two windows; what is called "disk" works at the third attempt."""

        attempts = 0

        def __call__(self, path, first=0):
            for index in range(first, 4):
                if index == 2 and path != "good":
                    self.attempts += path == "disk"
                    if path == "file" or self.attempts < 3:
                        raise UnreadableVideo("broken", transient=path == "disk")
                yield Window(None, None, None, index, 4)

    videos = Videos(("disk", "file", "good"), None, None, "list")
    bad = BadVideos(videos, max_share=1.0)
    windows = read_windows(videos, [0, 1, 2], sampler=Sample(), first=1, bad=bad, threads=2)
    rows = [(number, window.number) for number, window in windows]
    assert rows == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert bad.reasons == {"file": "broken"}


def test_broken_files_of_every_kind_are_unreadable(tmp_path):
    sample = WindowSampler(frames=4, stride=2, hop=8, height=32, width=32, channels=3)
    for path, reason in write_broken(tmp_path / "broken").items():
        with pytest.raises(UnreadableVideo, match=reason):
            list(sample(path))
