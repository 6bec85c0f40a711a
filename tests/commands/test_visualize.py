"""`videomae visualize`: from a checkpoint and a video to an image or a video."""

import argparse
import functools
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from golden import DATA
from PIL import Image
from videos import write_video

from videomae_jax.commands import visualize
from videomae_jax.config import load_config
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import load_checkpoint, save_checkpoint
from videomae_jax.tasks.pretrain import build_task
from videomae_jax.training.checkpoint import Checkpoints
from videomae_jax.training.step import make_state

CONFIG = {
    "model.encoder.depth": 1,
    "model.decoder.depth": 1,
    "clip.frames": 4,
    "clip.stride": 2,
    "clip.height": 32,
    "clip.width": 48,
    "mask.ratio": 0.75,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory with one checkpoint of a tiny model that has learned nothing."""
    overrides = [f"--config.{key}={value}" for key, value in CONFIG.items()]
    config = load_config("pretrain:tiny,custom", overrides)
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(str(workdir), keep=1)
    init = functools.partial(make_state, build_task(config), optax.identity(), seed=0)
    checkpoints.save(0, jax.jit(init)(), config)
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """25 frames: 13 at stride 2, which is three clips of 4 and one frame."""
    return write_video(tmp_path_factory.mktemp("video") / "numbered.mp4", count=25)


def run(workdir, video, out, *flags):
    parser = argparse.ArgumentParser()
    visualize.add_arguments(parser)
    command = [str(video), "--checkpoint", str(workdir), "--out", str(out), *flags]
    visualize.main(parser.parse_args(command))


def test_a_video_of_any_length_becomes_a_gif_of_all_its_frames(workdir, video, tmp_path, capsys):
    out = tmp_path / "new" / "walk.gif"
    run(workdir, video, out, "--out", str(tmp_path / "walk.png"))
    with Image.open(out) as picture:
        assert picture.n_frames == 13
        assert picture.info["duration"] == 120  # 1/8 s in hundredths
    assert Image.open(tmp_path / "walk.png").format == "PNG"
    printed = capsys.readouterr().out
    assert (
        str(out) in printed
        and "walk.png: 13 frames" in printed
        and "13 frames at stride 2 of the 25" in printed
    )
    assert "tube mask, 75.0% hidden: loss" in printed and "predicting zero 0.99" in printed
    assert "patch statistics from visible patches only" in printed


@pytest.mark.slow
def test_ratios_are_compared_in_rows_of_one_picture(workdir, video, tmp_path, capsys):
    run(workdir, video, tmp_path / "one.png", "--mask", "frame", "--ratio", "0.5")
    assert "frame mask, 50.0% hidden" in capsys.readouterr().out
    flags = ["--compare-ratios", "0.5,0.9", "--statistics", "truth", "--max-frames", "3"]
    run(workdir, video, tmp_path / "two.png", *flags)
    printed = capsys.readouterr().out
    assert "50.0% hidden" in printed and "87.5% hidden" in printed and "leaks" in printed
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > 1.6 * one.height
        assert two.width < 0.7 * one.width  # three columns, not six


def test_more_is_hidden_at_a_higher_ratio_and_nothing_comes_back(
    workdir, video, tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        "videomae_jax.pictures.write",
        lambda path, original, rows, **rest: shown.extend([original, *rows.values()]),
    )
    run(workdir, video, tmp_path / "a.gif", "--compare-ratios", "0.5,0.75", "--seed", "3")
    original, half, most = shown
    seen_half, seen_most = ((row.masked == original).all(-1) for row in (half, most))
    assert seen_most.mean() < seen_half.mean()
    assert not np.any(seen_most & ~seen_half & (half.masked != original).any(-1))
    assert half.masked.shape == original.shape == (13, 32, 48, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "walk.webm"], "'walk.webm' ends in .webm: use .gif or .mp4"),
        (["--fps", "0"], "--fps 0: use 1 to 50"),
        (["--stride", "0"], "--stride 0: use 1 or more"),
        (["--max-frames", "0"], "--max-frames 0: use 1 or more"),
        (["--ratio", "1"], "leaves none visible"),
        (["--mask", "cube"], "mask kind 'cube' is unknown: use one of tube"),
        (["--out", f"{__file__}/walk.png"], "cannot write .*walk.png: File exists"),
    ],
)
def test_mistakes_name_what_is_legal(workdir, video, tmp_path, flags, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        run(workdir, video, tmp_path / "walk.gif", *flags)


def test_a_released_file_is_taken_like_a_run_of_ours(video, tmp_path, capsys):
    # Converted files say nothing of the size: a small one is set in a config beside it.
    checkpoint = load_checkpoint(
        str(DATA / "pretrain_tiny.pth"),
        num_heads=3,
        decoder_num_heads=2,
        frames=4,
        image_size=32,
    )
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    shutil.copy(DATA / "pretrain_tiny.pth", tmp_path / "hf" / "released.pth")
    heads = ["--num-heads", "3", "--decoder-num-heads", "2", "--max-frames", "2", "--ratio", "0.75"]
    lines = []
    for source in ("hf", "hf/released.pth"):
        run(tmp_path / source, video, tmp_path / "walk.gif", *heads)
        lines.append(capsys.readouterr().out.splitlines()[0])
    assert lines[0] == lines[1] and "75.0% hidden: loss" in lines[0]
    parser = argparse.ArgumentParser()
    visualize.add_arguments(parser)
    with pytest.raises(UserError, match="names no videos: give one, VIDEO"):
        command = ["--checkpoint", str(tmp_path / "hf"), "--out", str(tmp_path / "walk.gif")]
        visualize.main(parser.parse_args(command))


def test_what_has_no_decoder_says_so(video, tmp_path):
    released = load_checkpoint(str(DATA / "pretrain_tiny.pth"), num_heads=3, decoder_num_heads=2)
    alone = released._replace(params={"encoder": released.params["encoder"]})
    save_checkpoint(str(tmp_path / "alone.pth"), alone, to="mcg")
    for source, what in (
        (tmp_path / "alone.pth", "holds an encoder only"),
        (DATA / "finetune_tiny_deepspeed.pth", "is a classifier"),
    ):
        with pytest.raises(UserError, match=f"{what}: without a decoder"):
            run(source, video, tmp_path / "walk.gif", "--num-heads", "3")


def test_a_run_on_no_files_needs_a_video():
    config = load_config("pretrain:tiny,custom", ["--config.data.train=synthetic"])
    with pytest.raises(UserError, match="has no files of videos, it read synthetic.*: give one"):
        visualize._held_out(config)


def test_a_file_that_is_no_video_is_named(workdir, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot read .*notes.mp4: invalid data"):
        run(workdir, tmp_path / "notes.mp4", tmp_path / "walk.gif")


def test_the_flags_are_known_before_anything_slow_is_imported():
    program = (
        "import sys; import videomae_jax.commands.visualize\n"
        "sys.exit(' '.join({'jax', 'numpy', 'PIL', 'av'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_list_of_ratios_is_numbers(capsys):
    parser = argparse.ArgumentParser()
    visualize.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args("walk.mp4 --checkpoint run --out a.gif --compare-ratios 0.5;0.9".split())
    assert "'0.5;0.9' is not a list of numbers: use such as 0.75,0.9" in capsys.readouterr().err
