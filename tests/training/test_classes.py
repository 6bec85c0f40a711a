"""Which label is which class is said before training, and stays with the run."""

import csv

import numpy as np

from videomae_jax.data.videos import Videos
from videomae_jax.training.banner import classes_line
from videomae_jax.training.workdir import CLASSES, write_classes


def videos(labels):
    paths = tuple(f"{index}.mp4" for index in range(len(labels)))
    return Videos(paths, np.array(labels, np.int32), None, "videos")


def test_classes_are_written_with_their_numbers_of_videos(tmp_path):
    names = ("jump", "roll", "walk")
    rows = write_classes(tmp_path, names, 3, videos([0, 2, 2]), videos([2]))
    assert classes_line(rows) == "jump 1, roll 0, walk 2 (training videos)"
    with open(tmp_path / CLASSES, newline="") as file:
        read = list(csv.reader(file))
    assert read == [
        ["label", "name", "train", "held_out"],
        ["0", "jump", "1", "0"],
        ["1", "roll", "0", "0"],
        ["2", "walk", "2", "1"],
    ]


def test_of_many_classes_the_first_are_shown(tmp_path):
    rows = write_classes(tmp_path, (), 400, videos([0, 399]), None)
    line = classes_line(rows)
    assert line.startswith("0 1, 1 0, 2 0,") and "... all 400 in classes.csv" in line
    assert len(line) < 120
