"""Packed mp4 files: which frames they hold, and that they are the same every time."""

import numpy as np
import pytest

from videomae_jax.data import decode
from videomae_jax.data.decode import read_clip
from videomae_jax.data.encode import GROUP, UNREFERRED, Mp4Writer


def moving(count: int, *, side: int = 96) -> np.ndarray:
    """Discs that move over a grain, before another background from frame 20 on."""
    rows, columns = np.mgrid[:side, :side]
    frames = np.random.default_rng(0).integers(0, 24, (count, side, side, 3)).astype(np.uint8)
    for index, frame in enumerate(frames):
        frame += np.uint8(160 * (index >= 20))
        frame[np.hypot(rows - 30 - index, columns - 2 * index) < 20] += 60
    return frames


def encode(frames: np.ndarray) -> bytes:
    writer = Mp4Writer(height=frames.shape[1], width=frames.shape[2], quality=21)
    writer.add(frames)
    return writer.finish()


@pytest.mark.parametrize("count", [1, 2, 3, GROUP, GROUP + 1, GROUP + 2, 50])
def test_the_index_of_a_file_numbers_its_frames_as_their_own_times_do(count):
    data = encode(moving(count))
    with decode._opened(data) as (container, stream):
        indexed = decode._read_index(stream)
    with decode._opened(data) as (container, stream):
        assert indexed == decode._scan(data, container, stream)
    whole = read_clip(data, np.arange)
    for start in range(0, count, 3):
        chosen = np.arange(start, count, 4)
        np.testing.assert_array_equal(
            read_clip(data, lambda _, rows=chosen: rows, indexed=True), whole[chosen]
        )


def test_the_same_frames_give_the_same_bytes():
    frames = moving(40)
    assert len({encode(frames) for _ in range(8)}) == 1


def test_three_of_four_frames_can_be_left_out(monkeypatch):
    frames = moving(50)
    data = encode(frames)
    decoded = []
    until = decode._until

    def counted(frames, time):
        def count():
            for frame in frames:
                decoded.append(frame.pts)
                yield frame

        return until(count(), time)

    monkeypatch.setattr(decode, "_until", counted)
    read_clip(data, lambda _: np.arange(GROUP + 2, 50, UNREFERRED + 1), indexed=True)
    # Of each four: the one wanted and the one that others refer to; and one at each key frame.
    assert len(set(decoded)) <= 2 * (50 - GROUP) / 4 + 4
