"""Lists of videos: selection and labels."""

import numpy as np
import pytest

from videomae_jax.data.videos import (
    Videos,
    count_labels,
    list_labels,
    number_labels,
    pick_videos,
    thin_videos,
    to_one_label,
    to_several_labels,
    used_labels,
)
from videomae_jax.errors import UserError


def test_thinned_videos_are_evenly_spaced():
    videos = Videos(tuple("abcdefghij"), np.arange(10, dtype=np.int32), None, "list")
    assert thin_videos(videos, most=4).paths == ("a", "c", "f", "h")
    assert thin_videos(videos, most=4).labels.tolist() == [0, 2, 5, 7]
    # Not half of them, as with one step between all.
    assert thin_videos(videos, most=9).paths == tuple("abcdefghi")
    assert len(thin_videos(videos, most=10)) == len(thin_videos(videos, most=99)) == 10


def several(rows, names=None):
    paths = tuple(map(str, range(len(rows))))
    return Videos(paths, np.array(rows, bool), names, "list")


def test_labels_of_a_batch_are_those_of_its_videos_and_padding_has_none():
    indices = np.array([2, -1, 0])
    one = Videos(("a", "b", "c"), np.array([4, 5, 6], np.int32), None, "list")
    found = one.labels_at(indices)
    assert found.tolist() == [6, -1, 4] and found.dtype == np.int32
    found = several([[1, 1], [0, 1], [1, 0]]).labels_at(indices)
    assert found.tolist() == [[1, 0], [0, 0], [1, 1]] and found.dtype == bool


def test_several_labels_are_numbered_counted_and_picked_like_one():
    videos = several([[1, 1, 0], [0, 0, 0], [0, 1, 0]], ("a", "b", "c"))
    assert list_labels(videos) == [[0, 1], [], [1]] and used_labels(videos).tolist() == [0, 1]
    assert count_labels(videos, 4).tolist() == [1, 2, 0, 0]
    assert pick_videos(videos, [2, 0]).labels.tolist() == [[0, 1, 0], [1, 1, 0]]
    assert thin_videos(videos, most=2).labels.shape == (2, 3)
    numbered = number_labels(videos, ("c", "x", "b", "a"))
    assert list_labels(numbered) == [[2, 3], [], [2]] and numbered.labels.shape == (3, 4)
    with pytest.raises(UserError, match="not among the 2 of training, first 'c'"):
        number_labels(videos, ("a", "b"))


def test_one_label_and_several_are_converted_where_that_loses_nothing():
    one = Videos(("a", "b"), np.array([2, 0], np.int32), None, "list")
    both = to_several_labels(one, 4)
    assert both.multi_label and list_labels(both) == [[2], [0]] and both.labels.shape == (2, 4)
    back = to_one_label(both, reason="no reason")
    assert not back.multi_label and back.labels.tolist() == [2, 0]
    assert back.labels.dtype == np.int32
    assert to_several_labels(several([[1, 1]]), 3).labels.tolist() == [[True, True, False]]
    with pytest.raises(UserError, match="2 of 3 videos of list .* first 1: it is so"):
        to_one_label(several([[0, 1], [1, 1], [0, 0]]), reason="it is so")
