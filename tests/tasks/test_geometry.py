"""A run takes over the geometry of a checkpoint, except what the user chose."""

import pytest

from videomae_jax.config import load_config
from videomae_jax.tasks.geometry import adopt_geometry, geometry_of


def adopt(spec, source, *given):
    overrides = [f"--config.{text}" for text in given]
    keys = {text.partition("=")[0] for text in given}
    return adopt_geometry(load_config(spec, overrides), source, keys, name="runs/demo")


@pytest.fixture(scope="module")
def demo():
    return geometry_of(load_config("demo"))


@pytest.mark.parametrize("recipe", ["finetune:s,custom", "probe:linear,s,custom"])
def test_every_part_is_taken_over_and_named(demo, recipe):
    config, line = adopt(recipe, demo)
    assert geometry_of(config) == demo and config.is_locked
    assert line.startswith("geometry of runs/demo: model.encoder.width 384 -> 128, ")
    assert "model.patch (2, 16, 16) -> (2, 8, 8)" in line and "clip.stride 4 -> 1" in line
    assert "model.positions 1d -> 3d" in line
    assert "source" not in line and "\n" not in line
    again, nothing = adopt_geometry(config, demo, set(), name="runs/demo")
    assert nothing == "" and again.to_json() == config.to_json()


def test_a_detector_takes_over_what_it_has(demo):
    config, line = adopt("detect:s,custom", demo)
    own = geometry_of(config)
    assert own == demo
    assert "clip.height 224 -> 48" in line and config.clip.short_side == 0  # follows
    # And a classifier from a detector.
    back, _ = adopt_geometry(load_config("finetune:s,custom"), own, set(), name="runs/detector")
    assert geometry_of(back) == own


def test_the_statistics_of_ava_stay_unless_the_channels_differ(demo):
    ava = load_config("detect:b,ava")
    config, line = adopt("detect:b,ava", demo)
    assert config.model.mean == ava.model.mean and config.model.std == ava.model.std
    assert "model.mean" not in line
    grey = {"model.mean": (0.5,), "model.std": (0.2,)}
    config, _ = adopt("detect:b,ava", grey)
    assert config.model.mean == (0.5,)
    config, _ = adopt("detect:b,custom", {"model.mean": (0.4,) * 3, "model.std": (0.2,) * 3})
    assert config.model.mean == (0.4,) * 3


def test_only_the_geometry_changes(demo):
    recipe = load_config("finetune:s,custom")
    config, _ = adopt("finetune:s,custom", demo)
    back, _ = adopt_geometry(config, geometry_of(recipe), set(), name="recipe")
    assert back.to_json() == recipe.to_json()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("model.encoder.depth=3", {"model.encoder.depth": 3}),
        ("clip.frames=16", {"clip.frames": 16}),  # also the value of the recipe
        ("clip.stride=8", {"clip.stride": 8}),
        # One side of a clip decides about both.
        ("clip.height=96", {"clip.height": 96, "clip.width": 224}),
    ],
)
def test_what_the_user_chose_stays(demo, given, kept):
    config, line = adopt("finetune:s,custom", demo, given)
    assert geometry_of(config) == demo | kept
    assert not [key for key in kept if key in line]


def test_pixel_statistics_are_taken_over_together():
    grey = {"model.mean": (0.5,), "model.std": (0.2,)}
    config, _ = adopt("finetune:s,custom", grey)
    assert (config.model.mean, config.model.std) == ((0.5,), (0.2,))
    config, line = adopt("finetune:s,custom", grey, "model.std=(1.0,1.0,1.0)")
    assert config.model.mean == (0.485, 0.456, 0.406) and line == ""


def test_a_stride_needs_dense_clips_on_both_sides(demo):
    assert "clip.stride" not in geometry_of(load_config("finetune:b,ssv2"))
    config, line = adopt("finetune:b,ssv2", demo)
    assert config.clip.stride == 4 and "stride" not in line
    sparse = geometry_of(load_config("finetune:b,ssv2"))
    assert adopt("finetune:b,hmdb51", sparse)[0].clip.stride == 2
