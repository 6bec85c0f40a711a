"""Tables of features: the same rows in both formats."""

import importlib.util
import json

import numpy as np
import pytest
from pyarrow import parquet

from videomae_jax.errors import UserError
from videomae_jax.inference.tables import check_ending, write_table

COLUMNS = ("video", "start", "features")
PATHS = ("a.mp4", "b.mp4", "c.mp4")
FACTS = {"pool": "time", "hop": 24}


def read(*names):
    """Yield the rows in two parts, of videos 0, 0, 2 and 2, 2."""
    rng = np.random.default_rng(0)
    for videos in ([0, 0, 2], [2, 2]):
        rows = {
            "video": np.array(videos),
            "start": rng.random(len(videos)),
            "features": rng.random((len(videos), 2, 4), np.float32),
        }
        yield {name: rows[name] for name in names}


def test_a_parquet_file_has_the_same_rows_as_an_npz(tmp_path):
    for ending in ("npz", "parquet"):
        write_table(str(tmp_path / f"x.{ending}"), read, COLUMNS, paths=PATHS, facts=FACTS)
    with np.load(tmp_path / "x.npz") as arrays:
        found = dict(arrays)
    assert found["paths"].tolist() == list(PATHS) and json.loads(str(found["facts"])) == FACTS
    table = parquet.read_table(tmp_path / "x.parquet")
    assert json.loads(table.schema.metadata[b"facts"]) == FACTS
    rows = table.to_pydict()
    assert rows["path"] == [PATHS[number] for number in found["video"]]
    for name in COLUMNS:
        expected = np.concatenate([part[name] for part in read(*COLUMNS)])
        np.testing.assert_array_equal(found[name], expected)
        np.testing.assert_array_equal(np.array(rows[name], expected.dtype), expected)
    assert {file.name for file in tmp_path.iterdir()} == {"x.npz", "x.parquet"}


def test_a_parquet_file_escapes_names_that_are_not_utf_8(tmp_path):
    paths = ("\udcc5.mp4", *PATHS[1:])
    write_table(str(tmp_path / "x.parquet"), read, COLUMNS, paths=paths, facts=FACTS)
    assert parquet.read_table(tmp_path / "x.parquet")["path"].to_pylist()[0] == "\\udcc5.mp4"


def test_a_folder_has_one_array_a_video_however_the_parts_divide_it(tmp_path):
    out = f"{tmp_path}/x/"
    write_table(out, read, COLUMNS, paths=("d/a.mp4", "d/b.mp4", "e/c.d.mkv"), facts=FACTS)
    assert {file.name for file in tmp_path.rglob("*.*")} == {"a.npy", "c.d.npy", "facts.json"}
    assert json.loads((tmp_path / "x/facts.json").read_text()) == FACTS
    rows = np.concatenate([part["features"] for part in read(*COLUMNS)])
    for name, expected in (("a", rows[:2]), ("c.d", rows[2:])):
        found = np.load(tmp_path / f"x/{name}.npy")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_other_endings_are_refused(monkeypatch):
    with pytest.raises(UserError, match="x.csv does not end in .npz, .parquet or /"):
        check_ending("x.csv")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_ending("x.npz")
    with pytest.raises(UserError, match=r"pip install 'videomae_jax\[parquet\]'"):
        check_ending("x.parquet")


def test_a_table_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot write .*gone/x.npz: No such file"):
        write_table(str(tmp_path / "gone/x.npz"), read, COLUMNS, paths=PATHS, facts=FACTS)
