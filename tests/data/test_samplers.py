"""Samplers: what they return for a video."""

from videos import write_video

from videomae_jax.data import sampling
from videomae_jax.data.samplers import ViewSampler
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
