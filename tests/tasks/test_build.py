"""What tasks share: the canvas of training clips, and the loop over clips on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.config import load_config
from videomae_jax.data.decode import UnreadableVideo
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.tasks import TASKS
from videomae_jax.tasks.build import canvas_size, clip_mapper, fit_canvas, map_in_turn


@pytest.mark.parametrize("recipe", ["pretrain", "finetune", "detect", "contrast"])
def test_every_model_has_the_positions_of_its_config(recipe):
    def model(*overrides):
        classes = () if recipe in ("pretrain", "contrast") else ("--config.model.classes=3",)
        config = load_config(f"{recipe}:s,custom", [*overrides, *classes])
        return TASKS[config.task].build_model(config)

    assert model().positions == "1d"
    assert model("--config.model.positions=3d").positions == "3d"
    with pytest.raises(UserError, match="model.positions '2d' is unknown: use 1d or 3d"):
        model("--config.model.positions=2d")


class Sized:
    """A reader of videos that are named by their height and width."""

    def size(self, path):
        if path == "broken":
            raise UnreadableVideo("broken")
        height, width = map(int, path.split("x"))
        return height, width


def canvas(*videos, **clip):
    overrides = [f"--config.clip.{name}={value}" for name, value in clip.items()]
    config = load_config("finetune:tiny,custom", overrides)
    fitted = fit_canvas(
        config, Videos(paths=videos, labels=None, class_names=None, name="few", reader=Sized())
    )
    assert fitted.is_locked
    return fitted.clip.source_height, fitted.clip.source_width


@pytest.mark.parametrize(
    ("videos", "side", "expected"),
    [
        (["256x340"], 224, (256, 340)),  # the released recipe
        (["720x1280", "480x640"], 224, (256, 340)),
        (["720x1280"], 320, (366, 486)),  # the margin of 256 x 340 at 320
        (["720x1280"], 48, (55, 73)),
        (["112x112"], 48, (55, 55)),  # no wider than the videos
        (["112x112", "112x150"], 48, (55, 73)),
        (["230x240", "broken"], 224, (230, 240)),  # no larger
        (["100x140"], 224, (224, 298)),  # and at least the clip
        (["640x360"], 224, (256, 224)),
        (["broken"], 48, (55, 73)),
    ],
)
def test_the_canvas_fits_the_clip_and_the_videos(videos, side, expected):
    assert canvas(*videos, height=side, width=side) == expected


def test_a_canvas_of_the_user_stays():
    assert canvas("112x112", height=48, width=48, source_height=64) == (64, 0)
    config = load_config("finetune:tiny,custom", ["--config.clip.source_height=300"])
    assert canvas_size(config.clip) == (300, 340)


def test_of_many_videos_some_decide():
    assert canvas(*["112x112"] * 99, "112x150", height=48, width=48) == (55, 55)


def test_on_a_cpu_only_the_side_of_a_branch_that_a_clip_takes_is_computed():
    taken = []

    def note(x):
        jax.debug.callback(lambda x: taken.append(int(x)), x)
        return -x

    def change(x):
        return jax.lax.cond(x % 3 == 0, note, lambda x: x, x)

    assert clip_mapper() is map_in_turn
    out = jax.jit(map_in_turn(change))(jnp.arange(9))
    jax.effects_barrier()
    np.testing.assert_array_equal(out, [0, 1, 2, -3, 4, 5, -6, 7, 8])
    assert sorted(taken) == [0, 3, 6]


def test_each_device_loops_over_its_own_clips():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        clips = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, P(("data", "fsdp"))))
        squares = jax.jit(map_in_turn(lambda x, other: x * other["x"]))
        compiled = squares.lower(clips, {"x": clips}).compile()
        np.testing.assert_array_equal(compiled(clips, {"x": clips}), np.arange(16.0) ** 2)
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
