"""The detection recipes are those of the released scripts, and every one of them builds."""

import numpy as np
import pytest

from videomae_jax.config import flatten, load_config
from videomae_jax.errors import UserError
from videomae_jax.tasks.detect import build_task
from videomae_jax.training.optim import make_schedule

# base rate, layer decay, epochs
RECIPES = {
    "s,ava": (1e-3, 0.6, 30),
    "s,ava_ft": (5e-4, 0.6, 30),
    "b,ava": (2.5e-4, 0.75, 30),
    "b,ava_ft": (5e-4, 0.75, 30),
    "l,ava": (2.5e-4, 0.75, 30),
    "l,ava_ft": (5e-4, 0.8, 20),
    "h,ava": (5e-4, 0.8, 20),
    "h,ava_ft": (5e-4, 0.8, 20),
}


@pytest.mark.parametrize("arguments", RECIPES)
def test_the_numbers_of_the_recipes(arguments):
    c = load_config(f"detect:{arguments}")
    assert RECIPES[arguments] == (c.base_lr, c.layer_decay, c.epochs)
    assert (c.batch_size, c.repeats, c.warmup_epochs, c.drop_path) == (128, 1, 5, 0.2)
    assert (c.clip.frames, c.clip.stride, c.clip.rate) == (16, 4, 25)
    assert not c.roi.aligned and c.roi.size == 7 and c.model.classes == 80
    assert c.optimizer.to_dict() == dict(
        kind="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=0.0
    )
    np.testing.assert_allclose(c.model.mean, (0.48146, 0.45469, 0.40384), atol=5e-6)
    np.testing.assert_allclose(c.model.std, 0.225)
    schedule = make_schedule(c, examples=12_800)
    assert schedule.peak_lr == pytest.approx(c.base_lr / 2)
    assert schedule.final_lr == pytest.approx(5e-7) and schedule.warmup_steps == 500


def test_every_recipe_has_the_same_keys_and_builds():
    keys = set(flatten(load_config("detect:b,ava")))
    for size in ("tiny", "s", "b", "l", "h"):
        for data in ("ava", "ava_ft", "custom"):
            config = load_config(f"detect:{size},{data}", ["--config.model.classes=9"])
            assert set(flatten(config)) == keys
            train, evaluate = build_task(config).samplers()
            assert train.shape == evaluate.shape == (16, 224, 224, 3)
            assert train.short_side == evaluate.short_side == 256
            assert train.spec["boxes"][0] == (32, 4) and train.spec["target"][0] == (32, 9)
            assert "size" in evaluate.spec and "size" not in train.spec
    own = load_config("detect:b,custom")
    assert own.roi.aligned and own.data.holdout == 0.1 and own.model.mean[0] == 0.485


@pytest.mark.parametrize(
    ("arguments", "overrides", "says"),
    [
        ("b,k400", [], "data 'k400' is unknown: use one of ava, ava_ft, custom"),
        ("b,custom", [], "model.classes is 0"),
        ("b,ava", ["clip.width=225"], "use 224 or 240"),
        ("b,ava", ["boxes.max=0"], "boxes.max 0: use 1 or more"),
        ("b,ava", ["roi.size=0"], "roi.size 0: use 1 or more"),
        ("b,ava", ["clip.rate=0"], "clip.rate 0.0: use"),
        ("b,ava", ["boxes.jitter=(-.1,0.,0.,0.)"], "boxes.jitter -0.1: use 0"),
        ("b,ava", ["boxes.jitter=(.1,)"], "boxes.jitter .*: give 4 numbers"),
        ("b,ava", ["boxes.min_score=2."], "boxes.min_score 2.0: use 0 to 1"),
        ("b,ava", ["augment.hue=-1"], "augment.hue -1: use 0"),
    ],
)
def test_mistakes_are_errors(arguments, overrides, says):
    with pytest.raises(UserError, match=says):
        build_task(load_config(f"detect:{arguments}", [f"--config.{text}" for text in overrides]))
