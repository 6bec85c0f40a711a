"""Windows of whole videos: their frames, the memory they need, and broken files."""

import tracemalloc

import pytest
from videos import number, write_broken, write_video

from videomae_jax.data import sampling
from videomae_jax.data.decode import UnreadableVideo
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.inference.windows import Window, WindowSampler, read_windows


def test_windows_cover_a_video_to_its_end():
    windows = sampling.window_indices(20, frames=4, stride=2, hop=8)
    assert windows.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [12, 14, 16, 18]]
    starts = sampling.window_indices(21, frames=4, stride=2, hop=3)[:, 0]
    assert starts.tolist() == [0, 3, 6, 9, 12, 13]
    assert sampling.window_indices(16, frames=4, stride=2, hop=8).shape == (2, 4)
    assert sampling.window_indices(5, frames=4, stride=2, hop=8).tolist() == [[0, 2, 4, 4]]


@pytest.mark.parametrize(("count", "starts"), [(20, [0, 8]), (24, [0, 8, 16]), (5, [0])])
def test_even_windows_leave_out_a_last_one_that_starts_elsewhere(count, starts):
    sizes = dict(height=64, width=96, channels=3)
    sampler = WindowSampler(frames=4, stride=2, hop=8, even=True, **sizes)
    assert sampler.indices(count)[:, 0].tolist() == starts


def test_a_long_video_is_never_held_whole(tmp_path):
    path = write_video(tmp_path / "long.mp4", count=700)
    sampler = WindowSampler(frames=4, stride=2, hop=3, height=64, width=96, channels=3)
    list(sampler(path, 230))  # imports and caches
    tracemalloc.start()
    seen = [(w.number, [number(image) for image in w.clip]) for w in sampler(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen[100] == (100, [300, 302, 304, 306]) and seen[-1][1][-1] == 698
    assert peak < 3e6 < 700 * 64 * 96 * 3 / 4, peak


def test_a_video_that_breaks_off_is_listed_and_retried_where_that_helps(tmp_path):
    class Sampler:
        """Breaks after two windows; "disk" works at the third attempt."""

        attempts = 0

        def __call__(self, path, first=0):
            for index in range(first, 4):
                if index == 2 and path != "good":
                    self.attempts += path == "disk"
                    if path == "file" or self.attempts < 3:
                        raise UnreadableVideo("broken", transient=path == "disk")
                yield Window(None, None, None, index, 4)

    videos = Videos(("disk", "file", "good"), None, None, "list")
    bad = BadVideos(videos, max_share=1.0)
    windows = read_windows(videos, [0, 1, 2], sampler=Sampler(), first=1, bad=bad, threads=2)
    rows = [(number, window.number) for number, window in windows]
    assert rows == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert bad.reasons == {"file": "broken"}


def test_broken_files_of_every_kind_are_unreadable(tmp_path):
    sampler = WindowSampler(frames=4, stride=2, hop=8, height=32, width=32, channels=3)
    for path, reason in write_broken(tmp_path / "broken").items():
        with pytest.raises(UnreadableVideo, match=reason):
            list(sampler(path))
