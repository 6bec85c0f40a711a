"""Drawn videos: what `videomae data draw` writes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from runs import fails

from videomae_jax import cli
from videomae_jax.data.decode import open_frames
from videomae_jax.data.figures import ACTIONS, HEIGHT, RATE, SCALE, _Figure, draw_clips, draw_scenes
from videomae_jax.data.sources import read_videos


def pictures(path):
    with open_frames(str(path)) as (seconds, read):
        return np.stack(list(read(range(len(seconds) - 1)))).astype(int)


def test_clips_are_a_folder_for_each_action_that_moves(tmp_path):
    paths = draw_clips(tmp_path / "clips", 8, seed=0)
    videos = read_videos(str(tmp_path / "clips"))
    assert list(videos.class_names) == sorted(ACTIONS) and len(videos) == len(paths) == 8
    for path in paths:
        film = pictures(path)
        assert film.shape == (2 * RATE, HEIGHT, HEIGHT, 3)
        assert np.abs(film - film[0]).max() > 60  # the figure moves


def test_the_seed_chooses_the_videos(tmp_path):
    (first,), (again,), (other,) = (
        draw_clips(tmp_path / name, 1, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_box_encloses_its_figure_and_little_else(action):
    rng = np.random.default_rng(0)
    for seconds in np.arange(0, 2, 0.25):
        figure = _Figure(rng, action, x=0.5, scale=0.6)
        image = Image.new("RGB", (HEIGHT * SCALE, HEIGHT * SCALE), (255, 255, 255))
        figure.draw(ImageDraw.Draw(image), seconds)
        rows, columns = np.nonzero((np.asarray(image) < 255).any(axis=-1))
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        larger = (np.array(drawn) / (HEIGHT * SCALE) - figure.box(seconds)) * [1, 1, -1, -1]
        assert larger.min() > -0.01 and larger.max() < 0.05, (seconds, larger)


def test_scenes_have_a_row_for_each_figure(tmp_path):
    draw_scenes(tmp_path, 6, seed=0)
    rows = list(csv.DictReader((tmp_path / "boxes.csv").open()))
    assert {(row["video"], row["timestamp"]) for row in rows} == {
        (f"{video:03d}.mp4", second) for video in range(6) for second in "12"
    }
    assert {row["action"] for row in rows} <= set(ACTIONS)
    for row in rows:
        left, top, right, bottom = (float(row[key]) for key in ("x1", "y1", "x2", "y2"))
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    film = pictures(tmp_path / "000.mp4")
    assert film.shape == (3 * RATE, HEIGHT, 2 * HEIGHT, 3)


def test_the_command_says_what_it_wrote_and_refuses_an_old_folder(tmp_path, capsys):
    folder = tmp_path / "scenes"
    cli.main(["data", "draw", str(folder), "--scenes", "--count", "2"])
    assert f"{folder}: 2 videos of bow, jump" in capsys.readouterr().out
    assert len(list(Path(folder).glob("*.mp4"))) == 2
    assert "give a new folder" in fails(capsys, "data", "draw", folder)
    for seed in (-1, 2**32):
        said = fails(capsys, "data", "draw", tmp_path / "new", f"--seed={seed}")
        assert f"'{seed}' is not 0 to 4294967295" in said
    assert "is not 1 or more" in fails(capsys, "data", "draw", tmp_path / "new", "--count", 0)
