"""Packed mp4 files: which frames they hold, that they are the same every time; and films."""

from fractions import Fraction

import av
import numpy as np
import pytest
from videos import number, numbered, turn

from videomae_jax.data import decode
from videomae_jax.data.decode import open_frames, read_clip, read_facts
from videomae_jax.data.encode import GROUP, UNREFERRED, FilmWriter, Mp4Writer
from videomae_jax.errors import UserError


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


def write_film(path, times, *, height=64, width=96, **options):
    with FilmWriter(path, height=height, width=width, rate=30, **options) as film:
        for index, (start, end) in enumerate(zip(times, times[1:], strict=False)):
            film.add(numbered(index, height=height, width=width), start=start, end=end)


TIMES = {
    "film": np.arange(51) * 1001 / 24000,
    "ntsc": np.arange(51) * 1001 / 30000,
    "uneven": np.cumsum([0, *(1 + np.arange(30) % 3)]) / 30,
    "one": np.array([0, 0.5]),
}


@pytest.mark.parametrize("name", TIMES)
def test_a_film_keeps_every_frame_and_its_time(tmp_path, name):
    times = TIMES[name]
    write_film(tmp_path / "film.mp4", times)
    with open_frames(str(tmp_path / "film.mp4")) as (seconds, read):
        count = len(seconds) - 1
        assert [number(frame) for frame in read(list(range(count)))] == list(range(len(times) - 1))
        np.testing.assert_allclose(seconds[:-1], times[:-1], rtol=0, atol=1e-12)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        # With B-frames, the last packet of the file is not that of the last frame.
        assert float(stream.duration * stream.time_base) == pytest.approx(times[-1], abs=2 / 30)
        if name in ("film", "ntsc"):
            assert stream.average_rate == Fraction({"film": 24000, "ntsc": 30000}[name], 1001)
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (65, 97), (300, 81), (64, 2)])
def test_odd_sizes_get_a_copy_of_the_last_row_or_column(tmp_path, height, width):
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[-1:] = picture[:, -1:] = 200
    with FilmWriter(tmp_path / "a.mp4", height=height, width=width, rate=30, quality=5) as film:
        film.add(picture, start=0, end=1)
    (read,) = read_clip(str(tmp_path / "a.mp4"), np.arange)
    assert read.shape == (height + height % 2, width + width % 2, 3)
    np.testing.assert_allclose(read[:height, :width], picture, atol=6)
    assert read[-1].min() > 190 and read[:, -1].min() > 190


def test_colours_and_the_shape_of_pixels_are_those_of_the_pictures(tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48], picture[:32, 48:], picture[32:] = (200, 30, 30), (20, 180, 60), (30, 40, 220)
    with FilmWriter(
        tmp_path / "a.mp4", height=64, width=96, rate=25, quality=5, pixel_aspect=64 / 45
    ) as film:
        film.add(picture, start=0, end=1)
    (read,) = read_clip(str(tmp_path / "a.mp4"), np.arange)
    for y, x in ((16, 20), (16, 70), (50, 50)):
        np.testing.assert_allclose(read[y, x], picture[y, x], atol=3)
    assert read_facts(str(tmp_path / "a.mp4")).pixel_aspect == 64 / 45
    # That of the upright picture.
    assert read_facts(turn(tmp_path / "a.mp4", degrees=180)).pixel_aspect == 64 / 45
    assert read_facts(turn(tmp_path / "a.mp4", degrees=90)).pixel_aspect == 45 / 64


def test_a_film_may_have_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with FilmWriter("10:20:30.mp4", height=32, width=32, rate=30) as film:
        film.add(np.zeros((32, 32, 3), np.uint8), start=0, end=1)
    assert read_facts(str(tmp_path / "10:20:30.mp4")).frames == 1


def test_an_unfinished_film_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with FilmWriter(tmp_path / "a.mp4", height=64, width=96, rate=30) as film:
            film.add(numbered(0), start=0, end=1)
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot write .*nowhere/a.mp4: No such file"):
        write_film(tmp_path / "nowhere" / "a.mp4", TIMES["one"])
