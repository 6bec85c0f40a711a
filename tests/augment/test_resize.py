"""Resizing on the device is what Pillow does."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.augment.resize import filter_weights, resize_clip
from videomae_jax.data.resize import resize_part

CANVAS = (72, 96)  # height and width
SIZES = [(1, 1), (1, 96), (72, 1), (2, 3), (7, 5), (17, 31), (32, 48), (33, 47), (72, 96), (71, 95)]
SIZES += [(64, 64), (36, 96), (72, 24), (40, 13)]
TARGETS = [(32, 48), (1, 1), (72, 96), (5, 90), (100, 120)]

resize = jax.jit(resize_clip, static_argnames=("height", "width"))


def clip_of(kind, size, channels=3, frames=2):
    """Noise; or black and white; or few levels, whose means fall between two; or one level."""
    rng = np.random.default_rng(size)
    clip = rng.integers(0, 256, (frames, *size, channels), np.uint8)
    make = {
        "noise": lambda x: x,
        "black and white": lambda x: (x > 127) * np.uint8(255),
        "steps": lambda x: x // 64 * 64,
        "flat": lambda x: np.full_like(x, 255),
    }
    return make[kind](clip)


def on_canvas(clip, canvas=CANVAS, rest=0):
    filled = np.full((len(clip), *canvas, clip.shape[-1]), rest, np.uint8)
    filled[:, : clip.shape[1], : clip.shape[2]] = clip
    return filled


def both(clip, target, **settings):
    """Device and host, int [F, height, width, C] each."""
    size, (height, width) = clip.shape[1:3], target
    device = resize(
        on_canvas(clip, **settings), jnp.asarray(size, jnp.int32), height=height, width=width
    )
    assert device.dtype == np.uint8 and device.shape == (len(clip), *target, clip.shape[-1])
    host = resize_part(clip, width=width, height=height)
    return np.asarray(device).astype(int), host.astype(int)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["noise", "black and white", "steps", "flat"])
def test_within_one_level_of_pillow(kind, target):
    differences = {}
    for size in SIZES:
        device, host = both(clip_of(kind, size), target)
        differences[size] = np.abs(device - host)
    assert {size: found.max() for size, found in differences.items() if found.max() > 1} == {}
    if kind == "flat":
        assert not any(found.any() for found in differences.values())


@pytest.mark.parametrize("side", [256, 224, 192, 168])  # the crops of a short side of 256
def test_at_the_size_of_the_recipes_most_pixels_are_equal(side):
    device, host = both(clip_of("noise", (side, side), frames=1), (224, 224), canvas=(256, 256))
    difference = np.abs(device - host)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.13
    assert side != 224 or (device == host).all()


def test_what_is_not_filled_does_not_matter():
    clip = clip_of("noise", (33, 47))
    zeros, bright = both(clip, (32, 48))[0], both(clip, (32, 48), rest=255)[0]
    np.testing.assert_array_equal(zeros, bright)
    grey = clip[..., :1]
    assert np.abs(np.subtract(*both(grey, (32, 48)))).max() <= 1


def test_the_sums_are_exact_where_a_product_takes_eleven_bits():
    compute = jax.jit(filter_weights, static_argnames=("length", "target"))
    for size, target in [(256, 224), (168, 224), (456, 224), (1, 224), (256, 48), (1024, 224)]:
        weights, totals = compute(jnp.int32(size), length=1024, target=target)
        assert weights.max() <= 2**11 and (weights == jnp.round(weights)).all()
        assert 255 * totals.max() < 2**24 and totals.min() > 0


def test_one_device_and_eight_agree_and_move_nothing():
    sizes = np.array(SIZES[:8], np.int32)
    clips = np.stack([on_canvas(clip_of("noise", tuple(size))) for size in sizes])
    function = jax.vmap(functools.partial(resize_clip, height=32, width=48))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = NamedSharding(mesh, P("data"))
    step = jax.jit(function, in_shardings=shard, out_shardings=shard).lower(clips, sizes).compile()
    np.testing.assert_array_equal(
        step(*jax.device_put((clips, sizes), shard)), jax.jit(function)(clips, sizes)
    )
    assert not re.findall("all-gather|all-to-all|all-reduce|collective", step.as_text())
