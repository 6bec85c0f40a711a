"""The clips of data/mocap_motion: motion tells their class, and nothing else does."""

import numpy as np
import pytest

from experiments import motion_set
from experiments.motion_set import BASES, CLASSES, STATES

FOLDER = motion_set.ROOT / "data/mocap_motion"
CHANCE = 1 / len(CLASSES)


def read(folder, split, base, factors):
    name = motion_set.class_name(*factors)
    return motion_set.read_frames(folder / split / name / f"{base:03d}.mp4")


@pytest.fixture(scope="module")
def clips():
    """Decoded frames of every clip by split: uint8 [bases, classes, F, H, W, 3]."""
    return {
        split: np.stack(
            [[read(FOLDER, split, base, factors) for factors in CLASSES] for base in range(bases)]
        )
        for split, bases in BASES.items()
    }


def test_the_lists_name_every_clip_with_its_class():
    for split, bases in BASES.items():
        lines = [line.rsplit(" ", 1) for line in (FOLDER / f"{split}.csv").read_text().splitlines()]
        names = sorted(motion_set.class_name(*factors) for factors in CLASSES)
        assert [label for _, label in lines] == [name for name in names for _ in range(bases)]
        assert all(path.split("/")[1] == label for path, label in lines)
        assert all((FOLDER / path).exists() for path, _ in lines)


def test_no_source_is_used_twice_and_the_script_makes_the_set_again(tmp_path, monkeypatch):
    read_frames, used = motion_set.read_frames, []
    monkeypatch.setattr(
        motion_set, "read_frames", lambda file: used.append(file) or read_frames(file)
    )
    motion_set.make_set(tmp_path, {"train": 2, "val": 1})
    assert len(set(used)) == len(used) == 6
    assert [file.relative_to(motion_set.STUDIO).parts[0] for file in used] == 4 * ["train"] + [
        "val",
        "val",
    ]
    for factors in CLASSES:  # another x264 may choose other bytes
        made, kept = (read(folder, "val", 0, factors) for folder in (tmp_path, FOLDER))
        assert np.abs(made.astype(int) - kept).mean() < 2


def test_all_clips_of_a_base_have_the_same_decoded_frames(clips):
    for split in clips.values():
        for base in split:
            hashes = np.array([[hash(frame.tobytes()) for frame in clip] for clip in base])
            assert (np.sort(hashes) == np.sort(hashes[0])).all()
            assert len(np.unique(hashes[0])) == 2 * STATES - 1  # both actors in their first state


def test_the_first_and_the_middle_frame_are_the_same_in_all_classes(clips):
    for split in clips.values():
        for frame in (0, STATES):
            assert (split[:, :, frame] == split[:, :1, 0]).all()


def test_every_state_is_as_frequent_at_each_position_in_every_class():
    starts = [(left, right) for left in range(STATES) for right in range(STATES)]
    shown = np.array(
        [[motion_set.choose_states(*c, starts=start) for start in starts] for c in CLASSES]
    )
    pairs = np.sort(shown[..., 0] * STATES + shown[..., 1], axis=1)  # [classes, starts, F]
    assert (pairs == np.arange(STATES**2)[:, None]).all()


def test_motion_tells_the_class(clips):
    """Who moves: the half that changes. Where and how fast: the shift that fits best."""
    right = 0
    for base in clips["val"].astype(np.float32).mean(-1):
        for factors, clip in zip(CLASSES, base, strict=True):
            halves = np.split(clip[:STATES], 2, axis=2)
            change = [np.abs(np.diff(half, axis=0)).mean() for half in halves]
            first = int(np.argmax(change))
            step = clip.shape[2] // 2 // STATES
            errors = {
                (direction, speed): np.abs(
                    halves[first][1:4] - np.roll(halves[first][:3], sign * times * step, axis=2)
                ).mean()
                for direction, sign in (("right", 1), ("left", -1))
                for speed, times in (("slow", 1), ("fast", 2))
            }
            right += (("left", "right")[first], *min(errors, key=errors.get)) == factors
    assert right >= 0.95 * BASES["val"] * len(CLASSES)


def classify(train, val):
    """Return the accuracy of ridge regression and of the nearest neighbour.

    train, val: features, float [bases, classes, D].
    """
    x, y = (part.reshape(-1, part.shape[-1]) for part in (train, val))
    mean, scale = x.mean(0), x.std(0) + 1e-3
    x, y = (x - mean) / scale, (y - mean) / scale
    truth = np.tile(np.arange(len(CLASSES)), len(val))
    onehot = np.tile(np.eye(len(CLASSES)), (len(train), 1)) - CHANCE
    # The dual form: there are more features than clips.
    weights = np.linalg.solve(x @ x.T + 0.1 * x.shape[1] * np.eye(len(x)), onehot)
    ridge = ((y @ x.T) @ weights).argmax(1)
    distances = (x**2).sum(1) - 2 * y @ x.T
    nearest = distances.argmin(1) % len(CLASSES)
    return [(found == truth).mean() for found in (ridge, nearest)]


def thumbnails(frames):
    """Return frames [..., H, W, 3] as features [..., D]: the green of every fourth pixel."""
    small = frames[..., 2::4, 2::4, 1].astype(np.float32)
    return small.reshape(*small.shape[:-2], -1)


def test_unordered_frames_do_not_tell_the_class(clips):
    features = {}
    for split, frames in clips.items():
        ranked = np.sort(thumbnails(frames), axis=2)[:, :, [0, STATES, -1]]
        features[split] = ranked.reshape(*ranked.shape[:2], -1)
    assert classify(features["train"], features["val"]) == [CHANCE, CHANCE]


@pytest.mark.parametrize("position", [2, 5, 10, 13])
def test_a_frame_at_a_known_position_does_not_tell_the_class(clips, position):
    features = {split: thumbnails(frames[:, :, position]) for split, frames in clips.items()}
    deviation = (CHANCE * (1 - CHANCE) / BASES["val"] / len(CLASSES)) ** 0.5
    assert max(classify(features["train"], features["val"])) < CHANCE + 3 * deviation
