"""Augmentations: Pillow's operations, one draw per clip, from the key of the clip only."""

import re
from pathlib import Path

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageEnhance, ImageOps

from videomae_jax.augment.clip import (
    GREY,
    Box,
    augment,
    box_map,
    box_mask,
    crop_box,
    cut_box,
    draw_erasure,
    fill_box,
    flip_map,
    mix_clips,
    resample,
    smooth_targets,
)
from videomae_jax.augment.randaugment import (
    NONE,
    OPERATIONS,
    Draws,
    _count_by_comparing,
    _count_by_scattering,
    change_pixels,
    compose_maps,
    draw_operations,
)
from videomae_jax.config import load_config
from videomae_jax.errors import UserError
from videomae_jax.tasks.build import map_in_turn
from videomae_jax.tasks.classify import build_task

EXPECTED = Path(__file__).parents[1] / "files/augmented.npy"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = dict(
    height=32, width=32, mean=MEAN, std=STD, operations=4, magnitude=7.0, deviation=0.5,
    min_area=0.08, flip=True, erase=0.25,
)  # fmt: skip
OFF = SETTINGS | dict(operations=0, min_area=1.0, flip=False, erase=0.0)


def image(seed=0, height=40, width=48):
    """Return a smooth uint8 image of a narrow range, so that its contrast can be stretched."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(20, 200, (6, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def video(frames=3, **size):
    return jnp.asarray(np.stack([image(frame, **size) for frame in range(frames)]))


def noise(frames=3):
    """As `video`, but with detail to sharpen."""
    rough = np.random.default_rng(0).integers(-30, 30, (frames, 40, 48, 3))
    return jnp.asarray(np.clip(np.asarray(video(frames)) + rough, 12, 210).astype(np.uint8))


def draws(*names, strength=0.7, sign=1.0):
    """Return four draws, so that all tests share a compiled function; the rest do nothing."""
    names = [*names, None, None, None, None][:4]
    count = len(names)
    operation = jnp.asarray([OPERATIONS.index(n) if n else NONE for n in names], jnp.int32)
    return Draws(operation, jnp.full(count, strength), jnp.full(count, sign, jnp.float32))


change = jax.jit(change_pixels)


# What the draws of level 7 mean in Pillow's words.
PILLOW = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, 4 - int(0.7 * 4)),
    "solarize": lambda image: ImageOps.solarize(image, 256 - int(0.7 * 256)),
    "solarize_add": lambda image: image.point(
        [min(255, i + 77) if i < 128 else i for i in range(256)] * 3
    ),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.63),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.63),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.63),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.63),
}


@pytest.mark.parametrize("name", PILLOW)
def test_each_operation_is_pillows(name):
    clip = noise()
    ours = np.asarray(change(clip, draws(name), (40, 48)))
    theirs = np.stack([np.asarray(PILLOW[name](Image.fromarray(np.asarray(f)))) for f in clip])
    assert np.abs(theirs.astype(float) - np.asarray(clip)).max() > 10
    # Pillow cuts off what is behind the point; the factor multiplies its rounding of the grey.
    assert np.abs(ours - theirs).max() <= (2.1 if name == "sharpness" else 1.5)


maps = jax.jit(compose_maps, static_argnames=("height", "width"))
resampled = jax.jit(resample, static_argnames=("height", "width"))


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_each_map_is_pillows(name):
    clip = video(height=40, width=48)
    source = maps(draws(name), height=40, width=48)
    ours = np.asarray(resampled(clip, source, (40, 48), height=40, width=48))
    fill, linear = (128,) * 3, Image.Resampling.BILINEAR
    forms = {
        "shear_x": (1, 0.21, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.21, 1, 0),
        "translate_x": (1, 0, 0.315 * 48, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.315 * 40),
    }

    def pillow(frame):
        image = Image.fromarray(np.asarray(frame))
        if name == "rotate":
            return image.rotate(21, linear, fillcolor=fill)
        return image.transform(
            image.size, Image.Transform.AFFINE, forms[name], linear, fillcolor=fill
        )

    difference = np.abs(ours - np.stack([np.asarray(pillow(frame), float) for frame in clip]))
    # All but the seam of the grey, where Pillow's edge is hard, and where a turn in two passes
    # does not interpolate between the same pixels.
    assert np.median(difference) < 1 and np.mean(difference > 6) < 0.06
    assert np.mean(np.abs(ours - np.asarray(clip, float)) > 6) > 0.2


def test_tables_get_the_result_of_the_tables_before_them():
    clip = video()
    both = change(clip, draws("invert", None, "equalize", "solarize_add"), (40, 48))
    step = clip
    for name in ("invert", "equalize", "solarize_add"):
        step = change(step, draws(name), (40, 48)).astype(jnp.uint8)
    np.testing.assert_array_equal(both.astype(jnp.uint8), step)


def test_no_draw_changes_nothing():
    np.testing.assert_allclose(change(video(), draws(), (40, 48)), video(), atol=1e-4)
    np.testing.assert_array_equal(compose_maps(draws(), height=4, width=6), jnp.eye(3))


def test_both_ways_to_count_agree():
    values = video().transpose(0, 3, 1, 2).reshape(3, 3, -1)
    weights = jnp.broadcast_to(jnp.arange(values.shape[-1]), values.shape)
    counts = _count_by_scattering(values, weights)
    np.testing.assert_array_equal(counts, _count_by_comparing(values, weights))
    assert int(counts.sum()) == int(weights.sum())


def test_draws_have_the_published_distribution():
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda k: draw_operations(k, count=4, magnitude=7.0, deviation=0.5))
    drawn = jax.jit(draw)(keys)
    frequency = np.bincount(np.asarray(drawn.operation).ravel() + 1, minlength=16) / 16000
    assert abs(frequency[0] - 0.5) < 0.02
    np.testing.assert_allclose(frequency[1:], 0.5 / 15, atol=0.006)
    for number, name in enumerate(OPERATIONS):
        mine = np.asarray(drawn.operation) == number
        strength = np.asarray(drawn.strength)[mine]
        assert abs(strength.mean() - 0.7) < 0.01 and abs(strength.std() - 0.05) < 0.008, name
        assert abs(np.asarray(drawn.sign)[mine].mean()) < 0.2, name


MAPPERS = [jax.vmap, map_in_turn]


@pytest.mark.parametrize("map_clips", MAPPERS)
def test_clips_are_those_of_the_code_that_computed_every_operation(map_clips):
    """The file has every fifth pixel of the second frames, made by commit 501f4ee."""
    rng = np.random.default_rng(0)
    slope = 4 * np.arange(24)[:, None, None] + 2 * np.arange(32)[:, None]
    clips = (rng.integers(0, 80, (64, 2, 24, 32, 3)) + slope).astype(np.uint8)
    sizes = np.stack([rng.integers(18, 25, 64), rng.integers(24, 33, 64)], axis=1)
    for clip, (height, width) in zip(clips, sizes, strict=True):
        clip[:, height:], clip[:, :, width:] = 0, 0
    how = SETTINGS | dict(height=16, width=20, map_clips=map_clips)
    keys = jax.random.split(jax.random.key(0), 64)
    ours = jax.jit(lambda *clips: augment(*clips, **how))(keys, clips, sizes)
    np.testing.assert_allclose(ours[:, 1, ::5, ::5], np.load(EXPECTED), atol=0.01)


@jax.jit
def augment_on_canvas(key, clip, size):
    """Augment clips without erasing; all tests use the same shapes, so it compiles once."""
    return augment(key, clip, size, **SETTINGS | dict(erase=0.0))


def on_canvas(clip):
    """Return 16 copies of a clip in the corner of a larger one, and their sizes."""
    canvas = jnp.pad(clip, [(0, 0), (0, 17), (0, 9), (0, 0)])
    sizes = jnp.broadcast_to(jnp.asarray(clip.shape[1:3]), (16, 2))
    return jnp.broadcast_to(canvas, (16, *canvas.shape)), sizes


def test_all_frames_get_the_same():
    frame = jnp.broadcast_to(video(1), (3, 40, 48, 3))
    clips = np.asarray(
        augment_on_canvas(jax.random.split(jax.random.key(0), 16), *on_canvas(frame))
    )
    assert clips.shape == (16, 3, 32, 32, 3) and clips.dtype == np.float32
    np.testing.assert_allclose(clips, np.broadcast_to(clips[:, :1], clips.shape), atol=1e-3)
    # Other clips get other draws.
    assert np.abs(clips[0] - clips[1]).mean() > 5
    assert clips.min() >= 0 and clips.max() <= 255.01


def test_the_result_of_a_clip_does_not_depend_on_its_index():
    clips, sizes = on_canvas(video())
    clips = clips + jnp.arange(16, dtype=jnp.uint8)[:, None, None, None, None]
    keys = jax.random.split(jax.random.key(1), 16)
    still = augment_on_canvas(keys, clips, sizes)
    moved = augment_on_canvas(jnp.roll(keys, 2), jnp.roll(clips, 2, axis=0), sizes)
    np.testing.assert_allclose(moved, np.roll(still, 2, axis=0), atol=1e-3)


@pytest.mark.parametrize("grey", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_a_clip_does_not_fill_changes_nothing(grey):
    """A clip in the corner of a larger one is augmented like the same clip alone."""
    clip = noise()[..., :1] if grey else noise()
    mean, std = (MEAN[:1], STD[:1]) if grey else (MEAN, STD)
    how = SETTINGS | dict(mean=mean, std=std, erase=0.0)
    clips, sizes = on_canvas(clip)
    run = augment_on_canvas
    if grey:
        run = jax.jit(lambda keys, clips, sizes: augment(keys, clips, sizes, **how))
    alone_clips = jnp.broadcast_to(clip, (16, *clip.shape))
    augment_alone = jax.jit(lambda keys: augment(keys, alone_clips, **how))
    for seed in range(4):  # of 16 clips each
        keys = jax.random.split(jax.random.key(seed), 16)
        alone = augment_alone(keys)
        np.testing.assert_allclose(run(keys, clips, sizes), alone, atol=0.01)
        whole = run(keys, clips, jnp.broadcast_to(jnp.asarray(clips.shape[2:4]), (16, 2)))
        assert np.abs(whole - alone).mean() > 10


def test_a_flip_is_a_flip():
    clip = video(height=32, width=32)
    flipped = resampled(clip, flip_map(32), (32, 32), height=32, width=32)
    np.testing.assert_allclose(flipped, pix.flip_left_right(clip), atol=1e-3)
    keys = jax.random.split(jax.random.key(0), 64)
    # The crop of a square image is nearly all of it, so only the mirror differs.
    clips = jnp.broadcast_to(clip[:1], (64, *clip[:1].shape))
    run = jax.jit(lambda keys: augment(keys, clips, **OFF | dict(flip=True)))
    still = jax.jit(lambda keys: augment(keys, clips, **OFF))(keys)
    out = run(keys)
    same = np.isclose(out, still, atol=1e-3).all((1, 2, 3, 4))
    mirrored = np.isclose(out, still[:, :, :, ::-1], atol=1e-3).all((1, 2, 3, 4))
    assert (same ^ mirrored).all() and 16 < same.sum() < 48


def test_resampling_a_box_is_a_bilinear_resize():
    clip = video(height=40, width=48)
    box = Box(*map(jnp.float32, (8, 10, 20, 16)))
    ours = resampled(clip, box_map(box, height=32, width=30), (40, 48), height=32, width=30)
    theirs = jax.image.resize(
        clip[:, 10:26, 8:28].astype(jnp.float32), (3, 32, 30, 3), "bilinear", antialias=False
    )
    # The border differs: ours interpolates with what lies outside of the box.
    np.testing.assert_allclose(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], atol=0.02)
    whole = resampled(clip, jnp.eye(3), (40, 48), height=40, width=48)
    np.testing.assert_allclose(whole, clip, atol=1e-3)
    outside = resampled(clip, jnp.eye(3).at[0, 2].set(100.0), (40, 48), height=40, width=48)
    np.testing.assert_array_equal(outside, GREY)


def test_crops_have_the_published_areas_and_shapes():
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda k: crop_box(k, height=256, width=340, min_area=0.08)))
    boxes = draw(keys)
    x, y, width, height = map(np.asarray, boxes)
    assert (x >= 0).all() and (x + width <= 340).all()
    assert (y >= 0).all() and (y + height <= 256).all()
    assert (np.abs(np.log(width / height)) < np.log(4 / 3) + 0.02).all()
    area = width * height / (256 * 340)
    assert 0.078 < area.min() < 0.1 and area.max() > 0.9
    whole = crop_box(keys[0], height=200, width=100, min_area=1.0)
    assert [int(side) for side in whole] == [0, 33, 100, 133]


def test_erasing_is_one_box_of_unit_noise_in_all_frames():
    clip = jnp.full([4, 48, 48, 3], 77.0)
    keys = jax.random.split(jax.random.key(0), 200)

    def erase(key):
        box, noise_key = draw_erasure(key, height=48, width=48, chance=0.25)
        return fill_box(noise_key, clip, box, mean=MEAN, std=STD)

    out = np.asarray(jax.jit(jax.vmap(erase))(keys))
    changed = (out != 77).all(-1)
    assert (changed == changed[:, :1]).all()
    hit = changed.any((1, 2, 3))
    assert 30 < hit.sum() < 70
    for mask in changed[hit, 0]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (
            mask.sum()
            == len(rows) * len(columns)
            == np.ptp(rows) * np.ptp(columns) + np.ptp(rows) + np.ptp(columns) + 1
        )
        assert 0.015 < mask.mean() < 0.36
    noise = (out[changed] / 255 - np.asarray(MEAN)) / np.asarray(STD)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.02)


def ramp_batch(count=8):
    """Return clips that are 1, 2, 4, ... everywhere, so that a mixture identifies its parts."""
    values = 2.0 ** jnp.arange(count)
    return jnp.broadcast_to(values[:, None, None, None, None], (count, 2, 16, 16, 3))


def mix(key, rows=None, *, mixup=0.8, cutmix=1.0, group=4, switch=0.5):
    rows = jnp.arange(8) if rows is None else rows
    targets = jnp.eye(8)[: len(rows)]
    return mixed_clips(
        key, ramp_batch(8)[: len(rows)], targets, rows,
        group=group, mixup=mixup, cutmix=cutmix, switch=switch,
    )  # fmt: skip


mixed_clips = jax.jit(mix_clips, static_argnames=("group", "mixup", "cutmix", "switch"))


def test_mixup_mixes_pairs_of_a_group_with_the_weight_of_the_target():
    mixed, targets = mix(jax.random.key(0), cutmix=0.0)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    weights = np.diagonal(targets)
    for index in range(8):
        partner = 4 * (index // 4) + 3 - index % 4
        assert targets[index, partner] == pytest.approx(1 - weights[index], abs=1e-6)
        blend = weights[index] * 2.0**index + (1 - weights[index]) * 2.0**partner
        np.testing.assert_allclose(mixed[index], blend, rtol=1e-5)
    # One fraction per group.
    assert np.ptp(weights[:4]) < 1e-6 and abs(weights[0] - weights[4]) > 1e-3


def test_the_weight_of_a_cutmix_target_is_the_area():
    for seed in range(8):
        mixed, targets = mix(jax.random.key(seed), mixup=0.0)
        for index in range(8):
            own = np.asarray(mixed[index, 0, :, :, 0]) == 2.0**index
            partner = 4 * (index // 4) + 3 - index % 4
            assert set(np.unique(mixed[index])) <= {2.0**index, 2.0**partner}
            assert (mixed[index] == mixed[index, :1]).all()
            assert targets[index, index] == pytest.approx(own.mean(), abs=1e-6)
    box = cut_box(jax.random.key(0), jnp.float32(0.75), height=64, width=64)
    assert max(float(box.width), float(box.height)) <= 32
    assert box_mask(box, height=64, width=64).sum() == box.width * box.height


def test_switch_chooses_between_the_two():
    cut, even = 0, 0
    for seed in range(32):
        mixed, _ = mix(jax.random.key(seed))
        for first in (0, 4):
            cut += len(np.unique(mixed[first])) == 2
            even += len(np.unique(mixed[first])) == 1
    assert cut > 12 and even > 12


def test_smoothed_targets_sum_to_one():
    targets = smooth_targets(jnp.asarray([2, 0]), classes=5, smoothing=0.1)
    np.testing.assert_allclose(targets[0], [0.02, 0.02, 0.92, 0.02, 0.02], atol=1e-7)
    _, mixed = mix(jax.random.key(3))
    np.testing.assert_allclose(mixed.sum(-1), 1, atol=1e-6)


def test_a_group_mixes_alike_wherever_it_is_in_the_batch():
    settings = dict(group=4, mixup=0.8, cutmix=1.0, switch=0.5)
    batch = ramp_batch(), jnp.eye(8), jnp.arange(8)
    still = mixed_clips(jax.random.key(5), *batch, **settings)
    swapped = [jnp.roll(x, 4, axis=0) for x in batch]  # the two groups
    moved = mixed_clips(jax.random.key(5), *swapped, **settings)
    for one, other in zip(still, moved, strict=True):
        np.testing.assert_array_equal(jnp.roll(one, 4, axis=0), other)


def test_groups_that_do_not_fit_are_an_error():
    with pytest.raises(UserError, match="groups of 4 do not divide 6 clips"):
        mix(jax.random.key(0), jnp.arange(6))


@pytest.fixture(scope="module")
def task():
    sizes = dict(height=16, width=16, source_height=24, source_width=32, frames=2)
    overrides = [f"--config.clip.{name}={value}" for name, value in sizes.items()]
    overrides += [
        "--config.model.classes=3",
        "--config.augment.group=2",
        "--config.model.encoder.depth=2",
    ]
    return build_task(load_config("finetune:tiny,custom", overrides))


@pytest.fixture(scope="module")
def params(task):
    return task.init(jax.random.key(0))


def batch_of(count, frames=2, height=24, width=32):
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (count, frames, height, width, 3), np.uint8)),
        "label": jnp.arange(count, dtype=jnp.int32) % 3,
        "row": jnp.arange(count, dtype=jnp.int32),
    }


@pytest.mark.slow
def test_one_device_and_eight_take_the_same_step_and_move_no_clips(task, params):
    batch, key = batch_of(16), jax.random.key(7)
    one = jax.jit(task.train_sums)(params, batch, key)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        step = jax.jit(task.train_sums, in_shardings=(whole, shard, whole), out_shardings=whole)
        step = step.lower(params, batch, key).compile()
    eight = step(*jax.device_put((params, batch, key), (whole, shard, whole)))
    for name in one:
        assert float(eight[name]) == pytest.approx(float(one[name]), rel=1e-4), name
    moves = r"\b(all-gather|all-to-all|collective-permute|reduce-scatter)\b"
    assert not set(re.findall(moves, step.as_text()))


@pytest.mark.slow
def test_a_clip_is_trained_alike_in_any_part_of_the_batch(task, params):
    batch, key = batch_of(8), jax.random.key(7)
    sums = jax.jit(task.train_sums)
    first, second = ({k: v[part] for k, v in batch.items()} for part in (slice(4), slice(4, 8)))
    halves = jax.tree.map(jnp.add, sums(params, first, key), sums(params, second, key))
    for name, value in sums(params, batch, key).items():
        assert float(halves[name]) == pytest.approx(float(value), rel=1e-4), name


def test_evaluation_is_not_augmented(task, params):
    batch = batch_of(4, height=16, width=16)
    del batch["row"]
    evaluate = jax.jit(task.eval_sums)
    first, second = evaluate(params, batch), evaluate(params, batch)
    assert first["error"].shape == (4,)
    np.testing.assert_array_equal(first["error"], second["error"])
    # An untrained head, nearly zero: the loss of a guess among three.
    np.testing.assert_allclose(first["error"], np.log(3), atol=0.01)
