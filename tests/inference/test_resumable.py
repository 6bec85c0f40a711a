"""Rows of a long computation: saved, read back, and never mixed with those of other settings."""

import numpy as np
import pytest

from videomae_jax.errors import UserError
from videomae_jax.inference import resumable
from videomae_jax.inference.resumable import Parts, fingerprint


def test_rows_are_read_back_in_order_and_a_new_process_resumes_after_them(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "BYTES", 20)  # two rows of int64 and more
    parts = Parts(tmp_path / "x.parts", {"hop": 4})
    assert parts.position == ()
    for row in range(5):
        parts.add({"video": np.array([row]), "half": np.array([row / 2])}, position=(row, 7))
    del parts  # killed: the rows in memory are lost
    again = Parts(tmp_path / "x.parts", {"hop": 4})
    assert again.position == (3, 7)
    again.add({"video": np.array([4, 5]), "half": np.array([2.0, 2.5])}, position=(5, 0))
    again.flush()
    read = [rows["video"].tolist() for rows in again.read("video")]
    assert sum(read, []) == [0, 1, 2, 3, 4, 5]
    assert Parts(tmp_path / "x.parts", {"hop": 4}).position == (5, 0)
    again.remove()
    assert not (tmp_path / "x.parts").exists()


def test_rows_of_other_settings_are_refused_and_kept(tmp_path):
    parts = Parts(tmp_path, {"hop": 24})
    parts.add({"video": np.array([1])}, position=(1,))
    parts.flush()
    with pytest.raises(UserError, match="holds results of hop 24, this command has 12: use anoth"):
        Parts(tmp_path, {"hop": 12})
    Parts(tmp_path, {"hop": 24})


def test_settings_count_from_the_first_rows_on(tmp_path):
    """A command that failed before it saved any does not keep the next one out."""
    first = Parts(tmp_path, {"hop": 24})
    first.add({"video": np.array([1])}, position=(1,))
    second = Parts(tmp_path, {"hop": 12})
    second.add({"video": np.array([2])}, position=(1,))
    with pytest.raises(UserError, match="holds results of hop 12, this command has 24"):
        first.flush()
    second.flush()
    (rows,) = Parts(tmp_path, {"hop": 12}).read("video")
    assert rows["video"].tolist() == [2]
    second.add({"video": np.array([3])}, position=(2,))
    second.remove()
    with pytest.raises(UserError, match=r"settings.json is gone"):
        second.flush()


def test_a_fingerprint_is_of_every_value():
    tree = {"a": np.arange(3.0), "b": ["x", "y"]}
    assert fingerprint(tree) == fingerprint({"a": np.arange(3.0), "b": ["x", "y"]})
    assert fingerprint(tree) != fingerprint({"a": np.arange(3.0), "b": ["xy", ""]})
    assert fingerprint(tree) != fingerprint({"a": np.array([0, 1, 2.5]), "b": ["x", "y"]})
