"""`videomae extract`: the windows and their times, features, resuming, and mistakes."""

import importlib.util
import shutil
import signal

import jax
import numpy as np
import pytest
from runs import CLIPS, fails, stop_midway
from videos import write_video

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.data.decode import read_clip
from videomae_jax.inference import resumable
from videomae_jax.tasks import pretrain
from videomae_jax.training.checkpoint import save_params

TINY = [
    "--config.clip.frames=4",
    "--config.clip.stride=2",
    *(f"--config.clip.{side}=32" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
]


@pytest.fixture(scope="module")
def model(checkpoint):
    return vm.load(checkpoint)


@pytest.fixture(scope="module")
def whole(checkpoint, window_list, tmp_path_factory):
    """The rows of all videos, a window every 24 frames."""
    return extract(window_list, checkpoint, tmp_path_factory.mktemp("whole") / "x.npz", "--hop=24")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    config = load_config("pretrain:tiny,custom", TINY)
    save_params(str(folder), pretrain.build_task(config).init(jax.random.key(0)), config)
    return folder


def extract(videos, checkpoint, out, *more):
    command = ["extract", videos, "--checkpoint", checkpoint, "--out", out, *more]
    cli.main(list(map(str, command)))
    return dict(np.load(out)) if str(out).endswith(".npz") and out.exists() else None


def crop(path, frames):
    """Frames of a 96 x 64 video as the checkpoint's clips: the centre, 32 x 32."""
    from videomae_jax.data.resize import resize_crop

    clip = read_clip(str(path), lambda count: frames)
    return resize_crop(clip, box=(16, 0, 64, 64), width=32, height=32)


@pytest.mark.parametrize("pool", ["clip", "time", "tokens"])
def test_rows_are_what_the_python_interface_computes_for_the_same_windows(
    checkpoint, model, window_list, tmp_path, pool, capsys
):
    found = extract(window_list, checkpoint, tmp_path / "x.npz", "--hop=24", f"--pool={pool}")
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


def test_times_are_those_of_the_file(whole):
    at = np.cumsum(1 + np.arange(30) % 3) / 30
    seconds = at - at[0]
    last_two = slice(-2, None)
    np.testing.assert_allclose(whole["start"][last_two], [0, seconds[22]], atol=2e-3)
    np.testing.assert_allclose(whole["end"][last_two], [seconds[7], seconds[29]], atol=2e-3)
    np.testing.assert_allclose(whole["start"][:2], [0, 24 / 30], atol=1e-6)
    np.testing.assert_allclose(whole["end"][4], 99 / 30, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_command_resumes_to_the_same_bits(
    checkpoint, tmp_path, number, monkeypatch, capsys
):
    write_video(tmp_path / "a.mp4", count=900)
    write_video(tmp_path / "b.mp4", count=40, shift=9)
    arguments = ["extract", tmp_path, "--checkpoint", checkpoint, "--hop=2", "--batch-size=8"]
    arguments = [*map(str, arguments), f"--out={tmp_path}/x.npz"]
    folder = tmp_path / "x.npz.parts"
    stop_midway(arguments, folder, files=3, number=number)
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


def test_parts_of_another_command_are_refused(
    checkpoint, window_list, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "x.npz"

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("videomae_jax.inference.extract.tables.write_table", stop)
        with pytest.raises(SystemExit, match="130"):
            extract(window_list, checkpoint, out, "--hop=24")
    command = ["extract", window_list, "--checkpoint", checkpoint, "--out", out]
    said = fails(capsys, *command, "--hop=12")
    assert "holds results of hop 24, this command has 12: use another --out, or remove" in said
    extract(window_list, checkpoint, out, "--hop=24")
    assert f"{out} exists" in fails(capsys, *command, "--hop=24")


def test_processes_share_the_videos(checkpoint, window_list, whole, tmp_path):
    videos, rows = [], []
    for index in range(2):
        share = [f"--process-index={index}", "--process-count=2"]
        extract(window_list, checkpoint, tmp_path / "y.npz", "--hop=24", *share)
        with np.load(tmp_path / f"y-{index:05}-of-00002.npz") as found:
            assert set(found["video"]) == [{0, 2}, {3}][index]
            videos += found["video"].tolist()
            rows.append(found["features"])
    order = np.argsort(videos, kind="stable")
    assert sorted(videos) == whole["video"].tolist()
    np.testing.assert_array_equal(np.concatenate(rows)[order], whole["features"])


def test_mistakes_are_one_line(checkpoint, window_list, tmp_path, capsys, monkeypatch):
    def said(*more, out="x.npz", videos=None):
        command = [
            "extract",
            videos or window_list,
            "--checkpoint",
            checkpoint,
            "--out",
            f"{tmp_path}/{out}",
        ]
        return fails(capsys, *command, *more)

    assert "does not end in .npz, .parquet or /" in said(out="x.csv")
    assert "x/ holds one vector a window: use --pool clip" in said("--pool=time", out="x/")
    assert "frames 5 is not a multiple of the patch's 2: use 4 or 6" in said("--window=5")
    assert "windows of hop 0: use 1 or more" in said("--hop=0")
    for size in (0, 12):
        expected = f"batch {size} is not divisible by 8 devices: use 8"
        assert expected in said(f"--batch-size={size}")
    share = ["--process-index=0", "--process-count=6"]
    assert "6 processes share 5 videos: use at most 5 processes" in said(*share)
    assert "give both, an index from 0" in said("--process-index=1")
    assert "has no ema" in said("--ema")
    nothing = window_list.parent / "nothing.csv"
    nothing.write_text("bad.mp4")
    assert "nothing to write: 1 of 1 videos unreadable" in said(videos=nothing)
    cli.main(["data", "pack", str(window_list), str(tmp_path / "packed"), "--format=original"])
    assert "holds records, which have no time stamps" in said(videos=tmp_path / "packed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'videomae_jax[parquet]'" in said(out="x.parquet")


def test_a_folder_has_the_features_of_each_video_at_even_steps(
    checkpoint, whole, window_list, tmp_path, monkeypatch, capsys
):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    command = ["extract", window_list, "--checkpoint", checkpoint, f"--out={tmp_path}/x/"]
    with monkeypatch.context() as patch:
        patch.setattr("videomae_jax.inference.extract._join", stop)
        with pytest.raises(SystemExit, match="130"):
            cli.main([*map(str, command), "--hop=24"])
    assert [path.name for path in tmp_path.glob("*.parts")] == ["x.parts"]
    with monkeypatch.context() as patch:  # every row is there already
        patch.setattr("videomae_jax.inference.engine.outputs", stop)
        cli.main([*map(str, command), "--hop=24"])
    assert f"{tmp_path}/x/: 6 windows of 3 videos" in capsys.readouterr().out
    # The windows that end at the last frame, numbers 4 and 7, start at no multiple of 24.
    for name, rows in (("long", [0, 1, 2, 3]), ("short", [5]), ("uneven", [6])):
        found = np.load(tmp_path / f"x/{name}.npy")
        np.testing.assert_array_equal(found, whole["features"][rows])
    assert "gone.mp4" in (tmp_path / "x.unreadable.csv").read_text()
    assert len(list((tmp_path / "x").iterdir())) == 4 and not (tmp_path / "x.parts").exists()
    assert f"{tmp_path}/x/ exists" in fails(capsys, *command, "--hop=24")


def test_processes_write_folders_of_their_own(checkpoint, window_list, tmp_path):
    share = ["--process-index=1", "--process-count=2"]
    extract(window_list, checkpoint, f"{tmp_path}/y/", "--hop=24", *share)
    found = {path.name for path in (tmp_path / "y-00001-of-00002").iterdir()}
    assert found == {"uneven.npy", "facts.json"}


def test_videos_of_one_name_need_another_format(checkpoint, tmp_path, capsys):
    for path in ("a/x.mp4", "b/x.mkv"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    (tmp_path / "list.csv").write_text("a/x.mp4\nb/x.mkv\n")
    command = ["extract", tmp_path / "list.csv", "--checkpoint", checkpoint]
    said = fails(capsys, *command, f"--out={tmp_path}/out/")
    assert "a/x.mp4 and " in said and "b/x.mkv would both be x.npy: rename one" in said


def test_a_preset_is_window_stride_and_hop(checkpoint, tmp_path):
    clip = CLIPS / "val/walk/walk_000.mp4"  # one video, 48 frames
    found = extract(clip, checkpoint, tmp_path / "x.npz", "--preset=fineaction", "--hop=20")
    assert found["first_frame"].tolist() == [0, 20, 32]
    assert (found["last_frame"] - found["first_frame"] == 15).all()
