"""The csv of detections: AVA's columns, and names and times of any kind."""

import csv

import numpy as np
import pytest

from videomae_jax.data.box_files import read_table
from videomae_jax.errors import UserError
from videomae_jax.inference.detection_csv import DetectedBox, write_detections

LEFT, RIGHT = (0.1, 0.6, 0.4, 0.9), (0.6, 0.6, 0.9, 0.9)


def test_the_table_is_that_of_ava(tmp_path):
    boxes = [
        DetectedBox("a", "0901", LEFT, [0.1234567, 1e-7]),
        DetectedBox("a", "0901", RIGHT, [0.5, 0.5]),
        DetectedBox("a", "901.5", LEFT, [0.5, 0.5]),
    ]
    write_detections(tmp_path / "new" / "a.csv", boxes)
    rows = list(csv.reader((tmp_path / "new" / "a.csv").open()))
    assert rows[0] == ["a", "0901", *"0.100000 0.600000 0.400000 0.900000 1 0.123457".split()]
    assert [row[6] for row in rows] == ["1", "2"] * 3 and rows[4][1] == "901.5"
    table = read_table(tmp_path / "new" / "a.csv")
    assert table.scores is not None and table.moments.tolist() == [901] * 4 + [901.5] * 2
    np.testing.assert_allclose(table.corners[0], LEFT)


def test_a_name_with_a_comma_is_one_column(tmp_path):
    write_detections(tmp_path / "a.csv", [DetectedBox("walk, run", "0001", LEFT, [0.5])])
    (row,) = csv.reader((tmp_path / "a.csv").open())
    assert row[:2] == ["walk, run", "0001"] and len(row) == 8


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write .*taken"):
        write_detections(tmp_path / "taken" / "a.csv", [])
