"""The fine-tuning recipes are those of the released scripts, and every one of them builds."""

import numpy as np
import pytest

from videomae_jax.config import flatten, load_config
from videomae_jax.data.samplers import DenseSampler, SparseSampler
from videomae_jax.errors import UserError
from videomae_jax.tasks.classify import build_task, check_group
from videomae_jax.training.optim import make_schedule

# videos a step, clips of each, base rate, epochs, layer decay, drop path, head dropout, views
RECIPES = {
    "s,k400": (384, 2, 5e-4, 150, 0.75, 0.1, 0.0, "5x3"),
    "b,k400": (384, 2, 5e-4, 75, 0.75, 0.1, 0.0, "5x3"),
    "b,k400,e800": (512, 1, 1e-3, 100, 0.75, 0.1, 0.0, "5x3"),
    "l,k400": (128, 2, 2e-3, 35, 0.75, 0.1, 0.0, "5x3"),
    "h,k400": (512, 2, 1e-3, 50, 0.75, 0.2, 0.5, "5x3"),
    "s,ssv2": (384, 2, 1e-3, 40, 0.7, 0.1, 0.0, "2x3"),
    "b,ssv2": (384, 2, 5e-4, 30, 0.75, 0.1, 0.0, "2x3"),
    "b,ssv2,e800": (512, 1, 5e-4, 50, 0.75, 0.1, 0.0, "2x3"),
    "b,ucf101": (128, 2, 5e-4, 100, 0.7, 0.2, 0.5, "5x3"),
    "b,hmdb51": (128, 2, 1e-3, 50, 0.7, 0.2, 0.0, "10x3"),
}


def load(arguments, *overrides):
    return load_config(f"finetune:{arguments}", overrides)


@pytest.mark.parametrize("arguments", RECIPES)
def test_the_numbers_of_the_recipes(arguments):
    c = load(arguments)
    assert RECIPES[arguments] == (
        c.batch_size, c.repeats, c.base_lr, c.epochs,
        c.layer_decay, c.drop_path, c.head_dropout, c.views,
    )  # fmt: skip
    sparse = "ssv2" in arguments
    assert c.clip.sampling == ("sparse" if sparse else "dense")
    assert c.augment.flip != sparse
    assert c.clip.stride == (2 if "hmdb51" in arguments else 4)
    # The rate goes by videos, not by clips.
    peak = make_schedule(c, examples=100_000).peak_lr
    assert peak == pytest.approx(c.base_lr * c.batch_size / 256)
    low = arguments in ("h,k400", "b,ucf101")
    assert c.min_lr == (1e-5 if low else 1e-6)


def test_every_recipe_has_the_same_keys_and_builds():
    keys = set(flatten(load("b,k400")))
    for size in ("tiny", "s", "b", "l", "h"):
        for data in ("k400", "ssv2", "ucf101", "hmdb51", "custom"):
            config = load(f"{size},{data}", "--config.model.classes=9")
            assert set(flatten(config)) == keys
            task = build_task(config)
            train, evaluate = task.samplers()
            assert train.shape == (16, 256, 340, 3) and evaluate.shape == (16, 224, 224, 3)
            assert isinstance(train, SparseSampler if data == "ssv2" else DenseSampler)
            # Repeats of a video lie side by side; a group must reach beyond them.
            assert config.augment.group > config.repeats
    assert load("").name == load("b,k400").name


@pytest.mark.parametrize(
    "arguments, overrides, says",
    [
        ("s,k400,e800", [], "no recipe for s,k400"),
        ("g,k400", [], "size 'g' is unknown"),
        ("b,k400", [], "model.classes is 0"),
        ("b,k400", ["model.classes=3", "clip.sampling=denser"], "use dense or sparse"),
        (
            "b,k400",
            ["model.classes=3", "clip.source_height=220"],
            "use 224 or more, or 0",
        ),
        ("b,k400", ["model.classes=3", "clip.width=225"], "use 224 or 240"),
        ("b,k400", ["model.classes=3", "drop_path=1.0"], "drop_path 1.0: use 0 to below 1"),
    ],
)
def test_mistakes_are_errors(arguments, overrides, says):
    with pytest.raises(UserError, match=says):
        build_task(load(arguments, *(f"--config.{text}" for text in overrides)))


def test_groups_divide_what_a_device_takes_at_once():
    change = load("b,k400").augment
    check_group(change, clips=12)
    with pytest.raises(UserError, match="augment.group=3$"):
        check_group(change, clips=6)
    with pytest.raises(UserError, match="augment.group=3$"):
        check_group(change, clips=3)


class Frames:
    """A video source that records the frames it was asked for."""

    def __init__(self, count, height, width):
        self.video = np.zeros((count, height, width, 3), np.uint8)
        self.video[..., 0] = np.arange(width) % 256
        self.video[..., 1] = np.arange(height)[:, None] % 256

    def read_clip(self, index, indices, *, channels):
        self.indices = indices(len(self.video))
        return self.video[self.indices]


@pytest.mark.parametrize("kind", [DenseSampler, SparseSampler])
def test_training_clips_move_in_time_and_place_and_evaluation_clips_do_not(kind):
    frames = Frames(count=100, height=128, width=256)
    fields = dict(frames=8, height=60, width=80, channels=3)
    fields |= dict(stride=4) if kind is DenseSampler else {}
    seen, lefts, heights = set(), set(), set()
    for seed in range(20):
        clip = kind(**fields, train=True)(frames, 0, np.random.default_rng(seed))
        assert clip.shape == (8, 60, 80, 3) and clip.dtype == np.uint8
        seen.add(tuple(frames.indices))
        # Red counts the columns: the box has a width of 171 of 256 and full height.
        lefts.add(int(clip[0, 30, 0, 0]))
        heights.add((int(clip[0, 0, 40, 1]), int(clip[0, -1, 40, 1])))
        assert 165 < int(clip[0, 30, -1, 0]) - int(clip[0, 30, 0, 0]) <= 171
    assert len(seen) > 10 and min(lefts) < 20 and max(lefts) > 60
    assert heights == {(1, 127)} or all(low <= 1 and high >= 126 for low, high in heights)
    seen = set()
    for seed in range(5):
        clip = kind(**fields, train=False)(frames, 0, np.random.default_rng(seed))
        seen.add((*frames.indices, int(clip[0, 30, 0, 0])))
    assert len(seen) == 1
