"""The csv of detections: rows of AVA, which our reader and its evaluators read."""

import csv

import numpy as np
import pytest

from videomae_jax.data.box_files import read_table
from videomae_jax.errors import UserError
from videomae_jax.inference.detection_csv import ScoredBox, write_detections

LEFT, RIGHT = (0.1, 0.6, 0.4, 0.9), (0.6, 0.6, 0.9, 0.9)


def test_the_rows_are_those_of_ava(tmp_path):
    path = tmp_path / "new" / "a.csv"
    boxes = [
        ScoredBox("-a", 902.0, LEFT, [0.1234567, 1e-7]),
        ScoredBox("-a", 902.0, RIGHT, [0.5, 1.0]),
        ScoredBox("b, c", 1 / 3, LEFT, [0.25, 0]),
    ]
    write_detections(path, boxes)
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["-a", "0902", *"0.100000 0.600000 0.400000 0.900000 1 0.123457".split()]
    assert [row[6] for row in rows] == ["1", "2"] * 3 and rows[4][:2] == ["b, c", "0.333333"]
    table = read_table(path)
    assert table.names == ["-a"] * 4 + ["b, c"] * 2
    assert table.scores.tolist() == [0.123457, 0, 0.5, 1, 0.25, 0]
    np.testing.assert_allclose(table.moments, [902] * 4 + [1 / 3] * 2, atol=1e-6)
    np.testing.assert_allclose(table.corners[[0, 2]], [LEFT, RIGHT])


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write .*taken"):
        write_detections(tmp_path / "taken" / "a.csv", [])
