"""Reading configs: which numbers none can have, and what is said of them."""

import pytest

from videomae_jax.config import load_config
from videomae_jax.errors import UserError

RECIPES = ("pretrain.py:tiny,custom", "finetune.py:tiny,custom", "probe.py:linear,tiny,custom")


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        (0, "save_every=0", "save_every 0: use 1 or more"),
        (0, "eval_every=-1", "eval_every -1: use 1 or more"),
        (0, "watchdog_seconds=0", "watchdog_seconds 0: use 1 or more"),
        (0, "clip.stride=-1", "clip.stride -1: use 1 or more"),
        (0, "clip.height=-32", "clip.height -32: use 1 or more"),
        (0, "steps=-5", "steps -5: use 0 or more"),
        (0, "seed=99999999999999999999", "use 0 to below 4294967296"),
        (0, "mask.ratio=nan", "mask.ratio is nan: give a number"),
        (0, "optimizer.b2=1.0", r"optimizer.b2 1.0: use 0 to below 1"),
        (0, "data.max_bad_share=2", r"data.max_bad_share 2.0: use 0 to 1"),
        (0, "min_lr=1", "min_lr 1 is above the rate: use 0 to 0.00015"),
        (0, "model.encoder.heads=3", r"width 128 does not divide by 3 heads: use 2"),
        (0, "model.std=(0.0,0.2,0.2)", r"model.std 0.0: use 1e-12 or more"),
        (0, "model.patch=(2,8)", r"model.patch \(2, 8\): give 3 numbers"),
        (0, "model.position_grid=(3,)", "give 3 numbers, of time, height, width"),
        (1, "augment.mixup=-1", "augment.mixup -1.0: use 0 or more"),
        (1, "augment.min_area=0", "augment.min_area 0.0: use 1e-06 to 1"),
        (1, "label_smoothing=1.5", "label_smoothing 1.5: use 0 to below 1"),
        (1, "views=0x3", "views '0x3' is not CLIPSxCROPS: use such as 5x3"),
        (2, "optimizer.b1=1.0", "optimizer.b1 1.0: use 0 to below 1"),
    ],
)
def test_numbers_that_no_run_can_have(recipe, override, words):
    with pytest.raises(UserError, match=words):
        load_config(f"configs/{RECIPES[recipe]}", [f"--config.{override}"])


@pytest.mark.parametrize("override", ["knn.k=0", "ema_decay=0.999", "data.holdout=0", "steps=3"])
def test_numbers_at_the_edge_are_legal(override):
    assert load_config(f"configs/{RECIPES[0]}", [f"--config.{override}"]).is_locked
