"""Samplers: what they return for a video."""

import numpy as np
from videos import write_video

from videomae_jax.data import sampling
from videomae_jax.data.samplers import ViewPairSampler, ViewSampler
from videomae_jax.data.sources import read_videos


def test_views_are_segments_by_crops_of_one_reading(tmp_path):
    write_video(tmp_path / "a.mp4", count=40, width=128, height=64)
    sampler = ViewSampler(frames=4, stride=2, height=64, width=64, channels=3, segments=3, crops=3)
    views = sampler(read_videos(tmp_path), 0, None)
    assert views.shape == sampler.shape == (9, 4, 64, 64, 3)
    indices = sampling.dense_views(40, segments=3, frames=4, stride=2)
    boxes = sampling.view_boxes(128, 64, target_width=64, target_height=64, crops=3)
    assert boxes == [(0, 0, 64, 64), (32, 0, 64, 64), (64, 0, 64, 64)]
    for view, clip in enumerate(views):
        if view % 3 == 0:  # the crop that holds the first six bits of the numbers
            read = [sum(int(p[4, 4 + 8 * b].mean() > 127) << b for b in range(6)) for p in clip]
            assert read == [index % 64 for index in indices[view // 3]]
    one = sampling.view_boxes(64, 128, target_width=64, target_height=64, crops=1)
    assert one == [(0, 32, 64, 64)]


def test_the_two_views_of_a_video_are_drawn_apart_from_one_reading():
    frames = np.zeros([60, 64, 128, 3], np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(60)[:, None, None], np.arange(128)
    read = []

    class Source:
        def read_clip(self, index, choose, *, channels):
            read.append(choose(len(frames)))
            return frames[read[-1]]

    sampler = ViewPairSampler(
        frames=4, stride=3, height=64, width=96, channels=3, train=True, canvas=(64, 96)
    )
    rngs = [np.random.default_rng([0, row]) for row in range(2)]
    made = sampler.sample_many(Source(), 0, rngs)
    clips, sizes = made["video"], made["size"]
    assert len(read) == 1 and clips.shape == (2, *sampler.shape) and (sizes == [64, 96]).all()
    times, lefts = clips[:, :, 0, 0, 0].astype(int), clips[:, 0, 0, 0, 1]
    assert (np.diff(times) == 3).all() and times[0, 0] != times[1, 0] and lefts[0] != lefts[1]
