"""The contrastive recipes have the numbers of MoCo v3, and every one of them builds."""

import pytest

from videomae_jax.config import flatten, load_config
from videomae_jax.errors import UserError
from videomae_jax.tasks.contrast import build_task
from videomae_jax.training.optim import make_schedule


def load(arguments, *overrides):
    return load_config(f"contrast:{arguments}", overrides)


def test_the_numbers_of_moco_v3():
    c = load("b,k400")
    assert (c.batch_size, c.base_lr, c.min_lr, c.epochs, c.warmup_epochs) == (
        1024,
        1.5e-4,
        0,
        300,
        40,
    )
    assert (c.optimizer.b1, c.optimizer.b2, c.optimizer.weight_decay) == (0.9, 0.999, 0.1)
    assert (c.temperature, c.ema_decay, c.freeze_patches) == (0.2, 0.99, True)
    assert c.model.head.to_dict() == dict(hidden=4096, dim=256)
    assert c.augment.to_dict() == dict(
        min_area=0.08, flip=True, jitter=0.8, colours=(0.4, 0.4, 0.2, 0.1), grey=0.2,
        blur=(1.0, 0.1), solarize=(0.0, 0.2),
    )  # fmt: skip
    assert make_schedule(c, examples=240_000).peak_lr == pytest.approx(6e-4)
    ssv2 = load("b,ssv2")
    assert ssv2.clip.stride == 2 and not ssv2.augment.flip


def test_every_recipe_has_the_same_keys_builds_and_is_labelled():
    keys = set(flatten(load("b,k400")))
    for size in ("tiny", "s", "b", "l", "h"):
        for data in ("k400", "ssv2", "ucf101", "hmdb51", "custom"):
            config = load(f"{size},{data}")
            assert set(flatten(config)) == keys and "a reconstruction" in config.name
            task = build_task(config)
            assert task.summary["recipe"].startswith("a reconstruction")
            train, evaluate = task.samplers()
            assert train.shape == (16, 256, 340, 3) and evaluate.shape == (16, 224, 224, 3)
    few = build_task(load("tiny,custom", "--config.batch_size=32")).summary["loss"]
    assert "2.773 at chance; few videos" in few


def test_the_operations_of_a_video():
    """Two clips forward and backward, and two more forward for the keys: 8 forward passes."""
    task = build_task(load("b,ssv2"))
    assert 2 * task.train_flops == pytest.approx(8 * 2 * 180e9, rel=0.02)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("chunks=0", "chunks 0: use 1 or more"),
        ("temperature=0", "temperature 0.0: use 0.001 or more"),
        ("augment.blur=(2.0,0.1)", "augment.blur 2.0: use 0 to 1"),
        ("model.head.dim=0", "model.head.dim 0: use 1 or more"),
    ],
)
def test_illegal_numbers(override, words):
    with pytest.raises(UserError, match=words):
        load("b,k400", f"--config.{override}")
