"""Key frames: which frames a clip shows, and boxes that move with the pixels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from videos import number, write_video

from videomae_jax.data.evaluation_batches import eval_batches
from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.resize import resize_part
from videomae_jax.data.samplers import KeyFrameSampler
from videomae_jax.data.sampling import (
    key_frame_offsets,
    nearest_frames,
    scale_to_short_side,
    window_runs,
)
from videomae_jax.data.storage import UnreadableVideo
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, pick_videos, split_videos, thin_videos
from videomae_jax.errors import UserError

TRAIN = KeyFrameSampler(
    frames=16,
    stride=4,
    rate=25.0,
    short_side=64,
    height=48,
    width=48,
    channels=3,
    persons=2,
    classes=3,
    train=True,
)
EVAL = replace(TRAIN, train=False, patch=(16, 16))


def make(paths, seconds, boxes, *, targets=None) -> Videos:
    """Key frames at these seconds; boxes: a list of (x1, y1, x2, y2) for each."""
    total = sum(map(len, boxes))
    flat = np.array([box for of in boxes for box in of], np.float32).reshape(-1, 4)
    frames = KeyFrames(
        seconds=np.array(seconds, float),
        names=tuple(f"v{index}" for index in range(len(paths))),
        stamps=np.array(seconds, float) + 900,
        offsets=np.concatenate([[0], np.cumsum(list(map(len, boxes)))]).astype(np.int64),
        boxes=flat,
        targets=np.eye(3, dtype=bool)[np.arange(total) % 3] if targets is None else targets,
        scores=np.linspace(1, 0.5, max(total, 1), dtype=np.float32)[:total],
        persons=np.arange(total),
    )
    return Videos(
        paths=tuple(paths), labels=None, class_names=tuple("abc"), name="made", key_frames=frames
    )


BOX = (0.25, 0.25, 0.5, 0.75)
MANY = make(list("aabc"), [1, 2, 1, 1], [[BOX], [BOX] * 3, [], [BOX] * 2])


def test_picked_key_frames_have_their_boxes():
    frames = MANY.key_frames.pick([3, 1])
    assert frames.names == ("v3", "v1") and frames.counts.tolist() == [2, 3] and frames.most == 3
    assert frames.persons.tolist() == [4, 5, 1, 2, 3]
    assert frames.scores.tolist() == MANY.key_frames.scores[[4, 5, 1, 2, 3]].tolist()
    kept = MANY.key_frames.keep(MANY.key_frames.scores < 0.75)  # persons 3, 4 and 5
    assert kept.names == ("v1", "v3") and kept.persons.tolist() == [3, 4, 5]
    assert len(MANY.key_frames.pick([])) == 0


def test_unreadable_videos_are_a_share_of_the_videos():
    assert BadVideos(MANY, max_share=0.5).total == 3


def test_a_video_is_on_one_side_of_a_split():
    paths = [f"/films/{index % 7}.mp4" for index in range(21)]
    videos = make(paths, range(21), [[BOX]] * 21)
    train, held_out = split_videos(videos, holdout=0.3, seed=0)
    assert not set(train.paths) & set(held_out.paths)
    assert len(set(held_out.paths)) == 2 and len(held_out) == 6 == len(held_out.key_frames)
    assert len(thin_videos(videos, most=5).key_frames.boxes) == 5
    with pytest.raises(UserError, match="has 1 video: 2 are needed"):
        split_videos(pick_videos(videos, [0, 7]), holdout=0.5, seed=0)


def test_frames_are_those_of_the_recipe_at_25_a_second():
    offsets = key_frame_offsets(frames=16, stride=4)
    assert offsets.tolist() == [4 * (i - 8) + 1 for i in range(16)]
    assert (offsets[0], offsets[7], offsets[8], offsets[-1]) == (-31, -3, 1, 29)
    for rate, expected in {
        25: offsets,
        30: np.round(1.2 * offsets),
        24: np.round(0.96 * offsets),
        50: 2 * offsets,
    }.items():
        seconds = np.arange(100 * rate + 1) / rate
        found = nearest_frames(seconds, 40 + offsets / 25)
        assert (found - 40 * rate).tolist() == expected.tolist(), rate
        # Containers round times to a millisecond.
        assert (nearest_frames(np.round(seconds, 3), 40 + offsets / 25) == found).all()


def test_a_video_that_could_not_be_read_for_its_size_is_unreadable_if_it_is_larger(tmp_path):
    small = write_video(tmp_path / "small.mp4")
    large = str(tmp_path / "large.mp4")
    videos = make([small, large], [0.5, 0.5], [[BOX]] * 2)
    [(indices, sampler)] = EVAL.groups(videos)
    assert indices == [0, 1]
    write_video(large, width=256)
    with pytest.raises(UnreadableVideo, match="256 x 64 pixels, clips have 96 x 64"):
        sampler(videos, 1, np.random.default_rng(0))


def test_times_outside_of_the_video_give_its_ends():
    seconds = np.array([0.0, 0.1, 0.5, 0.6, 0.7])  # four frames, for unequal times
    assert nearest_frames(seconds, np.array([-5, 0.04, 0.06, 0.29, 0.31, 9])).tolist() == [
        *(0, 0, 1, 1, 2, 3)
    ]
    assert nearest_frames(np.array([0.0, 1.0]), np.array([-1.0, 0.5, 2.0])).tolist() == [0, 0, 0]


def test_windows_hold_every_frame_that_is_nearest_to_a_moment():
    seconds = np.arange(101) / 10
    runs = window_runs(seconds, np.array([2.0, 3.0, 8.0]), around=0.62)
    assert [(run[0], run[-1], len(run)) for run in runs] == [(14, 36, 23), (74, 86, 13)]
    (whole,) = window_runs(seconds, np.array([2.0]), around=np.inf)
    assert whole.tolist() == list(range(100))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> tuple[str, np.ndarray]:
    """A video whose frames are 1 to 5 thirtieths of a second long, and their times."""
    times = np.cumsum(np.arange(90) % 5 + 1)
    path = write_video(tmp_path_factory.mktemp("uneven") / "a.mp4", count=90, times=times)
    return path, (times - times[0]) / 30


@pytest.mark.parametrize("memory", [None, FrameMemory(budget=10**9)])
def test_a_clip_of_a_variable_rate_is_by_time(uneven, memory):
    path, seconds = uneven
    second = 4.0
    last = seconds[-1] - 0.2
    videos = replace(make([path] * 2, [second, last], [[BOX]] * 2), memory=memory)
    ((_, sampler),) = replace(EVAL, short_side=64).groups(videos)
    for index, moment in enumerate((second, last)):
        clip = sampler(videos, index, np.random.default_rng(0))
        wanted = moment + key_frame_offsets(frames=16, stride=4) / 25
        expected = [int(abs(seconds - time).argmin()) for time in wanted]
        assert [number(frame) for frame in clip[:, :64, :96]] == expected
    assert expected[-5:] == [89] * 5  # in the last second: the last frame is repeated


def rectangle(width: int, height: int, box) -> np.ndarray:
    """A grey picture with a white rectangle at fractions of it: uint8 [H, W, 3]."""
    picture = np.full((height, width, 3), 60, np.uint8)
    x1, y1, x2, y2 = (np.array(box) * [width, height, width, height]).round().astype(int)
    picture[y1:y2, x1:x2] = 250
    return picture


def corners(picture: np.ndarray) -> list[int]:
    """The corners of the white rectangle."""
    rows, columns = np.nonzero(picture[..., 0] > 155)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


class Painted(KeyFrameSampler):
    """Clips of pictures that are not read from a file."""

    def decode(self, videos, index, rngs):
        frames = np.stack([self.picture] * self.frames * len(rngs))
        return frames, self.crop_boxes(frames.shape[2], frames.shape[1], rngs)


def paint(sampler: KeyFrameSampler, picture: np.ndarray) -> KeyFrameSampler:
    fields = {name: getattr(sampler, name) for name in sampler.__dataclass_fields__}
    painted = Painted(**fields)
    object.__setattr__(painted, "picture", picture)
    return painted


@pytest.mark.parametrize("size", [(160, 120), (90, 200), (64, 64), (400, 300), (100, 64)])
def test_pixels_and_boxes_move_together(size):
    box = (0.3, 0.4, 0.65, 0.7)
    videos = make(["a"], [0], [[box]])
    sampler = paint(replace(TRAIN, frames=2), rectangle(*size, box))
    places = set()
    rngs = [np.random.default_rng(seed) for seed in range(30)]
    clips = sampler.sample_many(videos, 0, rngs)
    assert clips["video"].shape == (30, 2, 48, 48, 3) and "size" not in clips
    for video, boxes, present in zip(*map(clips.get, ("video", "boxes", "present")), strict=True):
        assert present.tolist() == [True, False] and boxes[1].tolist() == [0, 0, 48, 48]
        x1, y1, x2, y2 = boxes[0]
        places.add((x1, y1))
        if min(x2 - x1, y2 - y1) > 4:
            assert abs(np.array(corners(video[0])) - boxes[0]).max() <= 1.01
        assert 0 <= x1 <= x2 <= 48 and 0 <= y1 <= y2 <= 48
    assert len(places) > 5
    scaled = scale_to_short_side(*size, short_side=64)
    evaluated = replace(TRAIN, frames=2, train=False, height=192, width=192)
    clips = paint(evaluated, rectangle(*size, box)).sample_many(videos, 0, rngs[:1])
    assert clips["size"].tolist() == [[scaled[1], scaled[0]]]
    assert abs(np.array(corners(clips["video"][0, 0])) - clips["boxes"][0, 0]).max() <= 1.01
    assert not clips["video"][0, :, scaled[1] :].any()
    assert not clips["video"][0, :, :, scaled[0] :].any()


def test_a_crop_is_that_of_the_resized_picture():
    noise = np.random.default_rng(0).integers(0, 256, (1, 77, 133, 3), np.uint8)
    sampler = replace(TRAIN, frames=1, short_side=50, height=40, width=40)
    width, height = sampler.scaled(133, 77)
    assert (width, height) == (86, 50)
    whole = np.asarray(Image.fromarray(noise[0]).resize((86, 50), Image.Resampling.BILINEAR))
    assert (resize_part(noise, width=86, height=50)[0] == whole).all()
    for x, y in [(0, 0), (13, 7), (46, 10)]:
        clip = sampler.cut(noise, [(x, y, 40, 40)])[0]
        # But for the rounding of a place in the picture.
        assert abs(clip.astype(int) - whole[y : y + 40, x : x + 40]).max() <= 1


def test_a_clip_larger_than_the_short_side_still_fits():
    sampler = replace(TRAIN, height=64, width=128)
    assert sampler.scaled(64, 64) == (128, 128) and sampler.scaled(300, 100) == (192, 64)


def test_of_many_persons_training_takes_some_and_evaluation_all():
    boxes = [(0.1 * i, 0.1, 0.1 * i + 0.1, 0.9) for i in range(9)]
    videos = make(["a"], [0], [boxes])
    picture = rectangle(80, 64, BOX)
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    clips = paint(replace(TRAIN, frames=1), picture).sample_many(videos, 0, rngs)
    assert clips["present"].all() and clips["target"].shape == (20, 2, 3)
    assert len({tuple(map(tuple, chosen)) for chosen in clips["target"].argmax(-1)[:, :, None]}) > 3
    again = paint(replace(TRAIN, frames=1), picture).sample_many(
        videos, 0, [np.random.default_rng(seed) for seed in range(20)]
    )
    assert all((clips[name] == again[name]).all() for name in clips)
    assert list(clips) == list(TRAIN.spec)
    crowd = make(["a"], [0], [boxes * 15])
    with pytest.raises(UserError, match="135 boxes in one key frame, more than 128.*--min-score"):
        EVAL.groups(crowd)


def test_parts_of_a_list_have_one_shape(tmp_path):
    write_video(tmp_path / "wide.mp4", count=30, width=160, height=64)
    write_video(tmp_path / "tall.mp4", count=30, width=64, height=96)
    paths = [str(tmp_path / name) for name in ("tall.mp4", "gone.mp4", "wide.mp4", "tall.mp4")]
    videos = make(paths, [0, 0, 0.5, 0.5], [[BOX], [BOX], [BOX] * 9, []])
    groups = EVAL.groups(videos)
    assert [(part, sampler.shape) for part, sampler in groups] == [
        ([0, 1, 3], (16, 96, 64, 3)),
        ([2], (16, 64, 160, 3)),
    ]
    for part, sampler in groups:
        assert sampler.persons == 16
        some = pick_videos(videos, part)
        (batch,) = eval_batches(
            some, sampler=sampler, batch_size=4, seed=0, bad=BadVideos(some, max_share=1)
        )
        assert batch["boxes"].shape == (4, 16, 4) and batch["boxes"].dtype == np.float32
        assert batch["target"].shape == (4, 16, 3) and batch["target"].dtype == np.bool_
        counts = some.key_frames.counts * [path != paths[1] for path in some.paths]
        assert batch["present"].sum(axis=1).tolist()[: len(part)] == counts.tolist()
        assert batch["valid"].tolist()[: len(part)] == [path != paths[1] for path in some.paths]
        assert not batch["present"][len(part) :].any()


def test_parts_are_those_of_the_process_that_all_agree_with(tmp_path):
    """A lasting read error on one of them must not give it other batches."""
    write_video(tmp_path / "wide.mp4", count=30, width=160, height=64)
    write_video(tmp_path / "tall.mp4", count=30, width=64, height=96)
    paths = [str(tmp_path / name) for name in ("wide.mp4", "tall.mp4")]
    videos, sent = make(paths, [0, 0], [[BOX], [BOX]]), []
    expected = EVAL.groups(videos, lambda numbers: sent.extend(numbers) or sent)
    (tmp_path / "wide.mp4").unlink()
    assert len(EVAL.groups(videos)) == 1
    assert EVAL.groups(videos, lambda numbers: sent) == expected and len(expected) == 2


def test_training_batches_are_a_function_of_seed_and_step(uneven):
    path, _ = uneven
    videos = make([path] * 5, [1, 2, 3, 4, 5], [[BOX]] * 5)
    sampler = replace(TRAIN, height=56, width=40)

    def train(**changes):
        bad = BadVideos(videos, max_share=0)
        how = dict(sampler=sampler, batch_size=4, seed=1, bad=bad, start_step=0, num_steps=3)
        return list(clip_batches(videos, **(how | changes)))

    batches = train()
    assert batches[0].keys() == {"video", "boxes", "present", "target", "id", "row"}
    assert batches[0]["video"].shape == (4, 16, 56, 40, 3)
    for whole, *parts in zip(
        batches, *(train(process_index=i, process_count=2) for i in range(2)), strict=True
    ):
        assert all((np.concatenate([p[k] for p in parts]) == whole[k]).all() for k in whole)
    (resumed,) = train(start_step=2, num_steps=1)
    assert all((resumed[key] == batches[2][key]).all() for key in resumed)
