"""Loading configs: recipes, files, overrides and illegal numbers."""

import re
import sys

import pytest

from videomae_jax import config
from videomae_jax.config import flatten, load_config, load_config_and_given, load_recipe
from videomae_jax.errors import UserError

RECIPES = ("pretrain:tiny,custom", "finetune:tiny,custom", "probe:linear,tiny,custom")


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
def test_illegal_numbers_name_the_nearest_legal_one(recipe, override, words):
    with pytest.raises(UserError, match=words):
        load_config(RECIPES[recipe], [f"--config.{override}"])


@pytest.mark.parametrize("override", ["knn.k=0", "ema_decay=0.999", "data.holdout=0", "steps=3"])
def test_numbers_at_the_edge_are_legal(override):
    assert load_config(RECIPES[0], [f"--config.{override}"]).is_locked


def test_the_last_override_of_a_key_counts():
    patches = [f"--config.model.patch=({frames},8,8)" for frames in (4, 2)]
    config = load_config("pretrain:tiny,custom", [*patches, "--config.seed=1", "--config.seed=2"])
    assert (config.model.patch, config.seed) == ((2, 8, 8), 2)


def test_a_recipe_is_named_or_given_as_the_file_of_a_checkout():
    named = load_config("pretrain:s,custom")
    assert named.to_json() == load_config("configs/pretrain.py:s,custom").to_json()


def test_the_current_directory_is_no_place_for_recipes(tmp_path, monkeypatch):
    """Many projects have a configs/pretrain.py: it is read only if its path is given."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/pretrain.py").write_text("raise SystemExit('executed')\n")
    (tmp_path / "pretrain.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("pretrain:s,custom").name.startswith("VideoMAE V1")
    assert load_recipe("probe", "linear,s,custom").task == "probe"
    assert load_config("configs/finetune.py:s,custom").task == "classify"  # none is there
    with pytest.raises(SystemExit, match="executed"):
        load_config("configs/pretrain.py:s,custom")


def test_a_file_imports_modules_of_its_own_folder(tmp_path):
    """Its own module, even if another config imported one of that name."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "shared.py").write_text(f"NAME = {name!r}\n")
        (folder / "mine.py").write_text(
            "import shared\n"
            "from videomae_jax.config import load_recipe\n\n\n"
            "def get_config(arguments=''):\n"
            "    import shared as again\n"
            "    config = load_recipe('demo')\n"
            "    config.name = again.NAME + arguments\n"
            "    return config\n"
        )
        assert load_config(f"{folder}/mine.py:!").name == f"{name}!"
    assert "shared" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pretrian:b", "did you mean pretrain?"),
        ("configs/pretrian.py:b", "did you mean pretrain?"),
        ("nothing/like/it.py", "the recipes are contrast, demo, detect, finetune, pretrain, probe"),
        ("pretrain:xl", "size 'xl' is unknown: use one of tiny, s, b"),
    ],
)
def test_a_config_that_does_not_exist(spec, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load_config(spec)


def test_the_keys_that_the_user_gave(tmp_path):
    flags = ["--config.seed=0", "--config.clip.frames=8"]
    recipe = load_config_and_given("probe:linear,s,custom", flags)
    assert recipe.given == {"seed", "clip.frames"} and recipe.config.clip.frames == 8
    assert load_config_and_given("configs/finetune.py:s,custom").given == set()
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from videomae_jax.config import load_recipe\n"
        "def get_config():\n"
        "    config = load_recipe('probe', 'linear,s,custom')\n"
        "    config.clip.stride, config.clip.frames = 2, 16\n"
        "    return config\n"
    )
    assert load_config_and_given(str(mine)).given == {"clip.stride"}
    # A file that builds on no recipe chooses everything.
    mine.write_text((config.RECIPES / "finetune.py").read_text())
    loaded = load_config_and_given(str(mine))
    assert loaded.given == set(flatten(loaded.config))
