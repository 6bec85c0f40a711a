"""Actions of persons in one video: which boxes count at which time, and their clips and scores."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import KINDS
from videos import turn, write_video

import videomae_jax as vm
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.inference import detect as rooms
from videomae_jax.inference.detect import detect, nearest
from videomae_jax.inference.network import build_network
from videomae_jax.tasks.detect import box_logits, eval_sampler

BOX = (0.2, 0.1, 0.6, 0.9)


def plan(rows, *, end=4.0, every=1.0, min_score=0.8):
    """Return {key time: its boxes' left sides} and the notes."""
    moments, notes = rooms._plan(rows, "a.mp4", end=end, every=every, min_score=min_score)
    found = {
        float(time): moments.boxes[moments.of(index), 0].astype(float).round(3).tolist()
        for index, time in enumerate(moments.seconds)
    }
    return found, " | ".join(notes)


def test_the_nearest_time_within_half_a_step():
    times = np.array([1.0, 2.0, 4.0])
    asked = np.array([0.4, 0.5, 1.4, 1.5, 1.6, 2.6, 4.0, 4.5, 9.0])
    assert nearest(times, asked, within=0.5).tolist() == [-1, 0, 0, 0, 1, -1, 2, 2, -1]
    assert nearest(times[:0], asked, within=9).tolist() == [-1] * 9


def test_boxes_of_a_detector_in_every_frame_are_those_of_the_nearest_frame():
    rows = [(frame / 29.97, frame / 1000, 0.1, 0.9, 0.9) for frame in range(100)]
    found, notes = plan(rows, end=100 / 29.97)
    assert found == {0: [0], 1: [0.03], 2: [0.06], 3: [0.09]}
    assert "boxes at 4 of 100 times used" in notes and "away" not in notes


def test_boxes_go_to_the_nearest_key_time_and_never_to_two():
    rows = [(0.5, 0.1, 0, 1, 1), (1.6, 0.2, 0, 1, 1), (2.4, 0.3, 0, 1, 1), (2.4, 0.4, 0, 1, 1)]
    found, notes = plan(rows)
    assert found == {0: [0.1], 2: [0.2]}  # of two times as near the earlier
    assert "up to 0.50 s away from their key times" in notes and "3 times used" in notes
    assert plan(rows, every=0.5)[0] == {0.5: [0.1], 1.5: [0.2], 2.5: [0.3, 0.4]}


def test_persons_of_low_score_are_left_out_and_counted():
    rows = [(1, *BOX, 0.9), (1, *BOX, 0.5), (2, *BOX, 0.79), (3, *BOX, 0.8)]
    found, notes = plan(rows)
    assert {time: len(left) for time, left in found.items()} == {1: 1, 3: 1}
    assert "2 of 4 boxes left out, of a person score below 0.8" in notes
    assert len(plan(rows, min_score=0)[0]) == 3
    with pytest.raises(UserError, match="score of 0.95 or more, the highest is 0.9: .*--min-score"):
        plan(rows, min_score=0.95)


def test_times_outside_of_the_video_are_left_out_and_counted():
    found, notes = plan([(1, *BOX), (4.2, *BOX), (902, *BOX)])
    assert list(found) == [1] and "boxes at 2 of 3 times left out, outside" in notes
    with pytest.raises(UserError, match="boxes from 902 to 903 s, a.mp4 ends at 4.00 s"):
        plan([(902, *BOX), (903, *BOX)])


def test_the_whole_picture_at_every_step():
    assert plan("whole", end=4.0) == ({0: [0], 1: [0], 2: [0], 3: [0]}, "")
    assert list(plan("whole", end=0.1)[0]) == [0]
    assert list(plan("whole", end=1.2, every=0.5)[0]) == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "boxes are a file, or rows of second"),
        ([(1, 0, 0, 1)], "1 rows of .4. numbers"),
        ((1, 0, 0, 1, 1), "5 rows of .1. numbers"),
        ([(1, 10, 20, 110, 200)], "corners from 10 to 200: give fractions"),
        ([(1, 0.5, 0.1, 0.2, 0.9)], "box .0.5, 0.1, 0.2, 0.9. at 1 s is empty"),
        ([(1, 0.5, 0.1, float("nan"), 0.9)], "give fractions"),
    ],
)
def test_rows_that_are_no_boxes(rows, said):
    with pytest.raises(UserError, match=said):
        plan(rows)


@pytest.mark.parametrize("every", [0, -1, float("inf"), float("nan")])
def test_impossible_steps(every):
    with pytest.raises(UserError, match="use more than 0"):
        plan([(1, *BOX)], every=every)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Videos of 120 frames: plain, of uneven times, and turned on its side."""
    folder = tmp_path_factory.mktemp("films")
    times = np.cumsum(1 + np.arange(120) % 3)
    write_video(folder / "plain.mp4", count=120, b_frames=2)
    write_video(folder / "uneven.mkv", count=120, times=times)
    write_video(folder / "turned.mp4", count=120, shift=60)
    turn(folder / "turned.mp4", degrees=90)
    return {path.stem: str(path) for path in folder.iterdir()}


ROWS = [(1, *BOX), (1, 0.5, 0.5, 0.9, 0.9, 0.95), (2, 0, 0, 1, 1), (3, 0.7, 0.2, 0.95, 0.8, 0.85)]


@pytest.mark.parametrize("name", ["plain", "uneven", "turned"])
def test_scores_are_those_of_the_clips_of_evaluation(detector, films, name):
    """One pass over the video reads the clips that the sampler reads one by one."""
    _, params, config = detector
    network = build_network(config)
    moments = list(detect(network, params, config, films[name], ROWS, source="m", batch_size=8))
    assert [len(moment.detections) for moment in moments] == [2, 1, 1]

    frames, _ = rooms._plan(ROWS, films[name], end=4.0, every=1, min_score=0)
    frames = rooms.replace(frames, targets=np.zeros([4, 3], bool))
    videos = Videos((films[name],) * 3, None, None, "list", key_frames=frames)
    [(_, sampler)] = eval_sampler(config).groups(videos)
    extend = tuple(config.boxes.extend)
    score = jax.jit(
        lambda params, clips: jax.nn.sigmoid(
            box_logits(network, params, clips, whole=False, extend=extend)
        )
    )
    for index, moment in enumerate(moments):
        clips = sampler.sample_many(videos, index, [np.random.default_rng(0)] * 2)
        expected = np.asarray(score(params, clips))[0, : len(moment.detections)]
        found = [list(detection.actions.values()) for detection in moment.detections]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.ptp(expected) > 0.1
    first, second, _, last = [detection for moment in moments for detection in moment.detections]
    assert (first.seconds, first.person, list(first.actions)) == (1, 1, list(KINDS))
    np.testing.assert_allclose(second.box, ROWS[1][1:5])
    assert last.person == pytest.approx(0.85) and last.seconds == 3


def test_the_python_method_and_batches_of_other_sizes(detector, films):
    folder, *_ = detector
    model = vm.load(folder)
    found = model.detect(films["plain"], np.array([row[:5] for row in ROWS]), batch_size=16)
    assert [row.seconds for row in found] == [1, 1, 2, 3]
    again = model.detect(films["plain"], ROWS, batch_size=8)
    assert [row.actions for row in again] == [row.actions for row in found]
    whole = model.detect(films["plain"], "whole", every=2)
    assert [(row.seconds, row.box) for row in whole] == [(0, (0, 0, 1, 1)), (2, (0, 0, 1, 1))]
    json.dumps(whole)  # plain numbers


def test_a_second_video_compiles_nothing(detector, films, caplog):
    model = vm.load(detector[0])
    with jax.log_compiles():
        model.detect(films["plain"], ROWS)
        caplog.clear()
        model.detect(films["plain"], [(3, *BOX), *ROWS[:2]])
    assert not [message for message in caplog.messages if "Compiling" in message]


def test_a_classifier_takes_no_boxes_and_a_detector_has_no_logits_of_clips(
    classifier, detector, films
):
    with pytest.raises(UserError, match="was trained to classify, it takes no boxes"):
        vm.load(classifier[0]).detect(films["plain"], "whole")
    model = vm.load(detector[0])
    with pytest.raises(UserError, match="has scores of boxes, not of videos: use detect"):
        model.logits(model.read_clip(films["plain"]))
    assert model.features(model.read_clip(films["plain"])).shape[0] == 1


def test_more_persons_than_fit_are_refused(detector, films):
    rows = [(1, *BOX)] * 129
    with pytest.raises(UserError, match="129 boxes .*--min-score"):
        vm.load(detector[0]).detect(films["plain"], rows)


def test_unreadable_videos(detector, tmp_path):
    model = vm.load(detector[0])
    (tmp_path / "text.mp4").write_text("dear diary")
    data = bytearray(Path(write_video(tmp_path / "pictures.mp4")).read_bytes())
    begin = data.index(b"mdat")
    size = int.from_bytes(data[begin - 4 : begin])
    data[begin + 4 : begin + size - 4] = b"\xff" * (size - 8)
    (tmp_path / "pictures.mp4").write_bytes(data)
    for name in ("text", "missing", "pictures"):
        with pytest.raises(UserError, match=f"cannot read .*{name}.mp4: "):
            model.detect(tmp_path / f"{name}.mp4", "whole")
