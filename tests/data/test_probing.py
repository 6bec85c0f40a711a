"""Sizes and durations of many videos at once."""

from pathlib import Path

from videos import write_video

from videomae_jax.data import retry
from videomae_jax.data.probing import read_durations, read_frame_times, read_sizes
from videomae_jax.data.storage import UnreadableVideo


def test_videos_that_cannot_be_read_are_left_out(tmp_path):
    paths = [str(tmp_path / name) for name in ("b.mp4", "gone.mp4", "a.mp4", "broken.mp4")]
    for path in paths[::2]:
        write_video(path, count=15)
    Path(paths[3]).write_bytes(b"no video")
    assert read_sizes([*paths, paths[0]]) == {paths[0]: (64, 96), paths[2]: (64, 96)}
    assert read_durations(paths) == {paths[0]: 0.5, paths[2]: 0.5}
    assert {path: len(times) for path, times in read_frame_times(paths).items()} == {
        paths[0]: 16,
        paths[2]: 16,
    }
    assert not read_sizes([])


def test_an_error_that_passes_is_tried_again(monkeypatch):
    monkeypatch.setattr(retry, "PAUSE", 0)
    tries = []

    class Reader:
        def size(self, path):
            tries.append(path)
            if path == "gone" or len(tries) < 3:
                raise UnreadableVideo("input/output error", transient=path != "gone")
            return 64, 96

    assert read_sizes(["a"], Reader()) == {"a": (64, 96)} and tries == ["a"] * 3
    assert not read_sizes(["gone"], Reader()) and tries[3:] == ["gone"]
