"""Frame and crop choices are those of the recipes, and legal for any video."""

import json
from pathlib import Path

import numpy as np
import pytest

from videomae_jax.data import sampling

TABLES = json.loads((Path(__file__).parents[1] / "files" / "recipe_tables.json").read_text())


@pytest.mark.parametrize("row", TABLES["pretrain_clip"])
def test_pretrain_clips_are_the_recipes(row):
    indices = sampling.pretrain_indices(
        row["frames"], start=row["start"], frames=row["length"], stride=row["stride"]
    )
    assert indices.tolist() == row["indices"]


@pytest.mark.parametrize("row", TABLES["pretrain_start_range"])
def test_pretrain_starts_are_the_recipes(row):
    assert sampling.pretrain_starts(row["frames"], frames=16, stride=row["stride"]) == row["starts"]


@pytest.mark.parametrize("row", TABLES["finetune_dense_clip"])
def test_dense_clips_are_the_recipes(row):
    indices = sampling.dense_indices(row["frames"], end=row["end"], frames=16, stride=4)
    assert indices.tolist() == row["indices"]
    ends = sampling.dense_ends(row["frames"], frames=16, stride=4)
    assert row["end"] in ends if ends else row["end"] is None


@pytest.mark.parametrize("row", TABLES["test_dense_views"])
def test_dense_views_are_the_recipes(row):
    views = sampling.dense_views(row["frames"], segments=row["segments"], frames=16, stride=4)
    assert views.tolist() == row["views"]


@pytest.mark.parametrize("row", TABLES["test_sparse_views"])
def test_sparse_views_are_the_recipes(row):
    assert sampling.sparse_views(row["frames"], frames=16).tolist() == row["views"]


@pytest.mark.parametrize("row", TABLES["multi_scale_crop"])
def test_multi_scale_crops_are_the_recipes(row):
    picture = row["width"], row["height"]
    pairs = sampling.multi_scale_pairs(*picture, target_width=224, target_height=224)
    assert [list(pair) for pair in pairs] == row["pairs"]
    for name, places in row["offsets"].items():
        wide, high = map(int, name.split("x"))
        got = sampling.crop_offsets(*picture, crop_width=wide, crop_height=high)
        assert [list(place) for place in got] == places


def test_a_side_near_the_target_is_snapped_to_it_but_never_leaves_the_picture():
    near = sampling.multi_scale_pairs(400, 258, target_width=224, target_height=224)
    assert near[3] == (224, 224)  # 0.875 * 258 is 225
    small = sampling.multi_scale_pairs(300, 223, target_width=224, target_height=224)
    assert small[0] == (224, 223)


@pytest.mark.parametrize("picture", [(1, 1), (3, 200), (341, 256), (64, 64)])
@pytest.mark.parametrize("target", [(224, 224), (64, 48)])
def test_every_crop_lies_inside_the_picture(picture, target):
    sizes = dict(target_width=target[0], target_height=target[1])
    for wide, high in sampling.multi_scale_pairs(*picture, **sizes):
        for x, y in sampling.crop_offsets(*picture, crop_width=wide, crop_height=high):
            assert 0 <= x <= x + wide <= picture[0] and 0 <= y <= y + high <= picture[1]
    x, y, wide, high = sampling.center_crop_box(*picture, **sizes)
    assert x >= 0 and y >= 0 and wide >= 1 and high >= 1
    assert x + wide <= picture[0] and y + high <= picture[1]


def test_center_crop_keeps_the_shape_of_the_target():
    box = sampling.center_crop_box(340, 256, target_width=224, target_height=224)
    assert box == (42, 0, 256, 256)
    assert sampling.center_crop_box(100, 100, target_width=64, target_height=32) == (0, 25, 100, 50)


@pytest.mark.parametrize("frames,stride", [(16, 4), (16, 1), (8, 2), (2, 30)])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 65, 300])
def test_indices_are_sorted_and_in_the_video(count, frames, stride):
    rng = np.random.default_rng(0)
    shape = dict(frames=frames, stride=stride)
    starts = range(sampling.pretrain_starts(count, **shape))
    ends = list(sampling.dense_ends(count, **shape)) or [None]
    clips = [sampling.pretrain_indices(count, start=s, **shape) for s in starts]
    clips += [sampling.dense_indices(count, end=end, **shape) for end in ends]
    clips += [sampling.middle_indices(count, **shape)]
    clips += [sampling.sparse_indices(count, rng, frames=frames)]
    clips += [*sampling.sparse_views(count, frames=frames)]
    clips += [*sampling.dense_views(count, segments=5, **shape)]
    clips += [*sampling.dense_views(count, segments=1, **shape)]
    for indices in clips:
        assert indices.shape == (frames,) and indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < count
        assert (np.diff(indices) >= 0).all()


def test_a_clip_that_fits_uses_every_frame_at_stride_one():
    indices = sampling.pretrain_indices(16, start=0, frames=16, stride=1)
    assert indices.tolist() == list(range(16))


def test_sparse_training_reaches_every_frame():
    rng = np.random.default_rng(0)
    draws = np.stack([sampling.sparse_indices(35, rng, frames=16) for _ in range(400)])
    assert set(draws.ravel()) == set(range(35))
    assert (np.diff(draws) > 0).all()
