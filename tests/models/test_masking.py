"""Masks: what they hide, how many, and that they do not depend on their company."""

import json

import jax
import numpy as np
import pytest
from golden import DATA

from videomae_jax.errors import UserError
from videomae_jax.models.masking import (
    KINDS,
    Mask,
    draw_mask,
    gather_tubes,
    mask_counts,
    mask_from_bool,
    mask_to_bool,
    mask_within,
    scatter_tubes,
)

GRID = (8, 14, 14)
RATIOS = {"tube": 0.9, "random": 0.9, "frame": 0.875, "running_cell": 0.75}


draw_masks = jax.jit(draw_mask, static_argnames=("kind", "grid", "ratio"))
as_bool = jax.jit(mask_to_bool, static_argnames="count")


def draw(kind, batch=5, grid=GRID, seed=0):
    keys = jax.random.split(jax.random.key(seed), batch)
    return draw_masks(keys, kind, grid=grid, ratio=RATIOS[kind])


@pytest.mark.parametrize(
    "row", json.loads((DATA / "recipe_tables.json").read_text())["mask_counts"]
)
def test_counts_of_the_reference(row):
    side = int(row["spatial"] ** 0.5)
    counts = mask_counts("tube", (8, side, side), ratio=row["ratio"])
    assert counts == (row["spatial"] - row["masked"], row["masked"])


@pytest.mark.parametrize("kind", KINDS)
def test_visible_and_masked_partition_the_patches_ascending(kind):
    mask = draw(kind)
    assert (mask.visible.shape[1], mask.masked.shape[1]) == mask_counts(
        kind, GRID, ratio=RATIOS[kind]
    )
    for visible, masked in zip(*map(np.asarray, mask), strict=True):
        assert (np.diff(visible) > 0).all() and (np.diff(masked) > 0).all()
        assert sorted([*visible, *masked]) == list(range(mask.positions))


def test_a_tube_hides_the_same_places_in_every_frame():
    hidden = np.asarray(as_bool(draw("tube"), count=8 * 196)).reshape(5, 8, 196)
    assert (hidden == hidden[:, :1]).all()
    assert (hidden.sum(-1) == 176).all()


def test_random_masks_hide_other_places_in_other_frames_but_as_many_in_all():
    hidden = np.asarray(as_bool(draw("random"), count=8 * 196)).reshape(5, 8, 196)
    assert (hidden.sum((1, 2)) == 8 * 176).all()
    assert (hidden != hidden[:, :1]).any()


def test_a_frame_mask_hides_whole_time_steps():
    hidden = np.asarray(as_bool(draw("frame"), count=8 * 196)).reshape(5, 8, 196)
    assert (hidden == hidden[:, :, :1]).all()
    assert (hidden[:, :, 0].sum(-1) == 7).all()


def test_running_cells_hide_their_share_of_each_cell_and_uncover_every_patch_in_turn():
    hidden = np.asarray(as_bool(draw("running_cell"), count=8 * 196)).reshape(5, 8, 7, 2, 7, 2)
    assert (hidden.sum((3, 5)) == 3).all()
    assert (~hidden[:, :4]).any(1).all()


def test_a_clip_keeps_its_mask_in_any_batch():
    keys = jax.random.split(jax.random.key(3), 8)
    whole = draw_masks(keys, "tube", grid=GRID, ratio=0.9)
    alone = draw_masks(keys[5:6], "tube", grid=GRID, ratio=0.9)
    visible = np.asarray(whole.visible)
    assert (visible[5] == alone.visible[0]).all()
    assert (visible[4] != visible[5]).any()


@pytest.mark.parametrize(
    ("kind", "ratio"), [("tube", 0.75), ("random", 0.75), ("frame", 0.5), ("running_cell", 0.25)]
)
def test_masks_of_one_key_are_nested(kind, ratio):
    keys = jax.random.split(jax.random.key(3), 4)
    mask = draw_masks(keys, kind, grid=GRID, ratio=RATIOS[kind])
    wider = draw_masks(keys, kind, grid=GRID, ratio=ratio)
    within = jax.jit(mask_within)(mask, wider)
    for clip in range(4):
        seen, more = (np.asarray(wider.visible)[clip][ids[clip]] for ids in within)
        np.testing.assert_array_equal(seen, mask.visible[clip])
        assert set(more) == set(np.asarray(wider.visible)[clip]) - set(seen)
        assert (np.diff(more) > 0).all() and len(more) > 0


def test_every_patch_is_hidden_about_as_often():
    hidden = np.asarray(as_bool(draw("tube", batch=2000, grid=(1, 4, 4)), count=16))
    # 14 of 16 hidden; five standard errors of 2,000 draws.
    assert np.abs(hidden.mean(0) - 14 / 16).max() < 5 * (14 / 16 * 2 / 16 / 2000) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_gather_takes_the_marked_patches_and_scatter_puts_them_back(kind):
    mask = draw(kind)
    tokens = np.arange(5 * 8 * 196 * 3, dtype=np.int32).reshape(5, 8 * 196, 3)

    @jax.jit
    def there_and_back(tokens, mask):
        visible = gather_tubes(tokens, mask.visible, mask)
        masked = gather_tubes(tokens, mask.masked, mask)
        return visible, masked, scatter_tubes(visible, masked, mask)

    visible, masked, back = map(np.asarray, there_and_back(tokens, mask))
    hidden = np.asarray(as_bool(mask, count=8 * 196))
    for clip in range(5):
        np.testing.assert_array_equal(visible[clip], tokens[clip][~hidden[clip]])
        np.testing.assert_array_equal(masked[clip], tokens[clip][hidden[clip]])
    np.testing.assert_array_equal(back, tokens)


def test_bool_and_ids_say_the_same():
    mask = draw("tube")
    hidden = as_bool(mask, count=196)
    again = mask_from_bool(hidden, masked=176)
    assert all((a == b).all() for a, b in zip(mask, again, strict=True))
    assert isinstance(again, Mask)


@pytest.mark.parametrize(
    ("kind", "grid", "ratio", "words"),
    [
        ("tube", GRID, 1.0, "leaves none visible: use 0.0052 to 0.9948"),
        ("tube", GRID, 0.001, "leaves none masked: use"),
        ("frame", GRID, 0.05, "8 time steps leaves none masked: use 0.1250 to 0.8750"),
        ("running_cell", GRID, 0.9, "hide quarters: mask ratio 0.9 is none, use 0.75"),
        ("running_cell", (8, 7, 14), 0.5, "use 8 x 14"),
        ("tube", GRID, float("nan"), "mask ratio nan: use above 0 and below 1"),
        ("frame", GRID, float("inf"), "mask ratio inf: use above 0 and below 1"),
        ("tubes", GRID, 0.9, "use one of tube, random, frame, running_cell"),
    ],
)
def test_impossible_masks_name_the_nearest_possible(kind, grid, ratio, words):
    with pytest.raises(UserError, match=words):
        mask_counts(kind, grid, ratio=ratio)
