"""What a detector takes from each kind of checkpoint, by the names of its parameters."""

import functools

import jax
import numpy as np
import pytest

from videomae_jax.config import load_config
from videomae_jax.tasks import TASKS
from videomae_jax.training.transfer import transfer_encoder

SMALL = [f"--config.clip.{side}=32" for side in ("height", "width")]
NORM = ("encoder/norm/bias", "encoder/norm/scale")


@functools.cache
def weights(recipe, seed):
    """Return random parameters of a model, each leaf with its own values."""
    classes = [] if recipe == "pretrain" else ["--config.model.classes=5"]
    config = load_config(f"{recipe}:tiny,custom", [*SMALL, *classes])
    shapes = jax.eval_shape(TASKS[config.task].build_task(config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("recipe", ["pretrain", "detect"])
def test_a_detector_takes_the_encoder_with_its_norm(recipe):
    before, fresh = weights(recipe, 0), weights("detect", 1)
    params, table = transfer_encoder(before, fresh)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], before["encoder"])
    assert params["head"] is not before.get("head")
    assert len(table.matched) == 17 and set(NORM) <= set(table.matched)
    assert table.fresh == ("head/bias", "head/kernel") and not table.unexpected


def test_from_a_classifier_the_norm_is_new_and_listed():
    before, fresh = weights("finetune", 0), weights("detect", 1)
    params, table = transfer_encoder(before, fresh)
    for part in ("embed", "blocks"):
        ours, theirs = params["encoder"][part], before["encoder"][part]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for tree in (params["encoder"]["norm"], params["head"]):
        source = fresh["encoder"]["norm"] if "scale" in tree else fresh["head"]
        jax.tree.map(np.testing.assert_array_equal, tree, source)
    assert table.fresh == (*NORM, "head/bias", "head/kernel")
    assert table.left_out == ("fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel")
    assert not table.missing and "fresh       encoder/norm/bias" in str(table)


def test_a_classifier_takes_all_of_a_detector_but_its_norm():
    params, table = transfer_encoder(weights("detect", 0), weights("finetune", 1))
    assert "norm" not in params["encoder"] and len(table.matched) == 15
    assert table.left_out == (*NORM, "head/bias", "head/kernel")
