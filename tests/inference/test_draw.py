"""Videos with drawn boxes: all frames, their times, the right boxes."""

import numpy as np
import pytest
from videos import number, turn, write_video

from videomae_jax.data.decode import UnreadableVideo, open_frames, read_facts
from videomae_jax.data.encode import FilmWriter
from videomae_jax.drawing import GREY, class_colour
from videomae_jax.inference.detect import Detection, Moment
from videomae_jax.inference.draw import write_drawn_video


def moment(seconds, *boxes, **scores):
    scores = scores or {"run": 0.9, "low": 0.2}
    found = [Detection(seconds, box, 0.95, scores) for box in boxes]
    return Moment("a", seconds, found)


# Below the number at the top of the picture, with room for the labels.
LEFT, RIGHT = (0.1, 0.6, 0.4, 0.9), (0.6, 0.6, 0.9, 0.9)


def read(path):
    with open_frames(str(path)) as (seconds, read_frames):
        return seconds, np.stack(list(read_frames(list(range(len(seconds) - 1)))))


def has_edge(frame, original, box, colour):
    """Return whether the two vertical edges of a box are there, paler after compression."""
    height, width = frame.shape[:2]
    left, top, right, bottom = np.multiply(box, [width, height, width, height]).round().astype(int)
    away = [
        np.abs(picture[top + 2 : bottom - 2, [left + 1, right - 2]].astype(int) - colour).mean(0)
        for picture in (frame, original)
    ]
    return bool((away[0].sum(-1) < 0.6 * away[1].sum(-1)).all())


def check_film(source, out, moments, *, every):
    """Every frame with its time is there, and shows the boxes of the nearest moment or none."""
    times = np.array([found.detections[0].seconds for found in moments])
    seconds, frames = read(source)
    assert write_drawn_video(source, str(out), moments, every=every, threshold=0.3) == len(frames)
    drawn_seconds, drawn = read(out)
    np.testing.assert_allclose(drawn_seconds[:-1], seconds[:-1], atol=1e-5)
    assert [number(frame) for frame in drawn] == [number(frame) for frame in frames]
    height, width = frames.shape[1:3]
    assert drawn.shape[1:] == (height + height % 2, width + width % 2, 3)
    drawn = drawn[:, :height, :width]
    shown = 0
    for time, frame, original in zip(seconds[:-1], drawn, frames, strict=True):
        away = np.abs(times - time)
        for found, distance in zip(moments, away, strict=True):
            near = distance <= every / 2 + 1e-6 and distance == away.min()
            for detection in found.detections:
                assert has_edge(frame, original, detection.box, class_colour(0)) == near, time
            shown += near
    assert shown
    return drawn


def test_frames_show_the_boxes_of_the_nearest_key_time(tmp_path):
    source = write_video(tmp_path / "a.mp4", count=100, width=240, height=160, b_frames=2)
    moments = [moment(1.0, LEFT), moment(2.5, RIGHT)]
    drawn = check_film(source, tmp_path / "b.mp4", moments, every=1)
    facts = read_facts(str(tmp_path / "b.mp4"))
    assert facts.codec == "h264" and facts.rate == pytest.approx(30) and facts.steady
    # What is not drawn on is the picture.
    _, frames = read(source)
    assert np.abs(drawn.astype(int) - frames)[:, 40:80].mean() < 4


@pytest.mark.parametrize("name", ["uneven", "turned", "odd", "portrait"])
def test_films_of_other_kinds(tmp_path, name):
    size = {"odd": (181, 121), "portrait": (120, 300)}.get(name, (180, 120))
    times = np.cumsum(1 + np.arange(60) % 3) if name == "uneven" else None
    suffix = ".mp4" if name == "turned" else ".mkv"
    options = dict(pixels="yuv444p") if name == "odd" else {}
    source = write_video(
        tmp_path / f"a{suffix}", count=60, width=size[0], height=size[1], times=times, **options
    )
    if name == "turned":
        turn(source, degrees=180)  # the number is then at the bottom, upside down
        with open_frames(source) as (_, read_frames):
            (upright,) = read_frames([7])
        write_drawn_video(source, str(tmp_path / "b.mp4"), [moment(9, LEFT)], every=1, threshold=0)
        _, drawn = read(tmp_path / "b.mp4")
        assert len(drawn) == 60 and np.abs(drawn[7].astype(int) - upright).mean() < 4
        return
    check_film(source, tmp_path / "b.mp4", [moment(0.5, LEFT), moment(1.5, RIGHT)], every=0.5)


def test_a_turned_film_keeps_the_shape_of_its_pixels(tmp_path):
    source, picture = tmp_path / "a.mp4", np.zeros((64, 96, 3), np.uint8)
    with FilmWriter(source, height=64, width=96, rate=25, pixel_aspect=64 / 45) as film:
        film.add(picture, start=0, end=1)
    turn(source, degrees=90)
    write_drawn_video(str(source), str(tmp_path / "b.mp4"), [moment(0, LEFT)], every=1, threshold=0)
    assert read(tmp_path / "b.mp4")[1].shape[1:3] == (96, 64)
    assert read_facts(str(tmp_path / "b.mp4")).pixel_aspect == 45 / 64


def test_actions_below_the_threshold_are_not_written(tmp_path):
    source = write_video(tmp_path / "a.mp4", count=3, width=240, height=160)
    scores = {"run": 0.9, "low": 0.6, "near": 0.2}

    def colours(threshold):
        write_drawn_video(
            source,
            str(tmp_path / "b.mp4"),
            [moment(0, LEFT, **scores)],
            every=1,
            threshold=threshold,
        )
        frame = read(tmp_path / "b.mp4")[1][1].astype(int)
        # The backgrounds of labels: at least a hundred pixels of a colour.
        asked = [class_colour(index) for index in range(3)] + [GREY]
        return [int((np.abs(frame - colour).max(-1) < 25).sum() > 100) for colour in asked]

    assert colours(0.1) == [1, 1, 1, 0]
    assert colours(0.6) == [1, 1, 0, 0]
    assert colours(0.61) == [1, 0, 0, 0]
    assert colours(0.95) == [0, 0, 0, 1]  # the person's own score


def test_a_film_that_breaks_off_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "a.mp4", count=90)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(data) // 3
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(data)
    try:
        write_drawn_video(source, str(tmp_path / "b.mp4"), [moment(1, LEFT)], every=1, threshold=0)
    except UnreadableVideo:
        assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
