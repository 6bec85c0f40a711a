"""Lists of videos: selection."""

import numpy as np

from videomae_jax.data.videos import Videos, thin_videos


def test_thinned_videos_are_evenly_spaced():
    videos = Videos(tuple("abcdefghij"), np.arange(10, dtype=np.int32), None, "list")
    assert thin_videos(videos, most=4).paths == ("a", "d", "g", "j")
    assert thin_videos(videos, most=4).labels.tolist() == [0, 3, 6, 9]
    assert len(thin_videos(videos, most=10)) == len(thin_videos(videos, most=99)) == 10
