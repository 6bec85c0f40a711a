"""What the augmentations mean: one draw for a whole clip, from its own key alone."""

import re

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
    erase_box,
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
from videomae_jax.tasks.classify import build_task

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = dict(
    height=32, width=32, mean=MEAN, std=STD, operations=4, magnitude=7.0, deviation=0.5,
    min_area=0.08, flip=True, erase=0.25,
)  # fmt: skip
OFF = SETTINGS | dict(operations=0, min_area=1.0, flip=False, erase=0.0)


def picture(seed=0, height=40, width=48):
    """A smooth uint8 picture that does not use all values, so that contrast can be stretched."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(20, 200, (6, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def video(frames=3, **size):
    return jnp.asarray(np.stack([picture(frame, **size) for frame in range(frames)]))


def noise(frames=3):
    """As `video`, but with detail to sharpen."""
    rough = np.random.default_rng(0).integers(-30, 30, (frames, 40, 48, 3))
    return jnp.asarray(np.clip(np.asarray(video(frames)) + rough, 12, 210).astype(np.uint8))


def draws(*names, strength=0.7, sign=1.0):
    count = len(names)
    operation = jnp.asarray([OPERATIONS.index(n) if n else NONE for n in names], jnp.int32)
    return Draws(operation, jnp.full(count, strength), jnp.full(count, sign, jnp.float32))


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
    ours = np.asarray(jax.jit(change_pixels)(clip, draws(name), (40, 48)))
    theirs = np.stack([np.asarray(PILLOW[name](Image.fromarray(np.asarray(f)))) for f in clip])
    assert np.abs(theirs.astype(float) - np.asarray(clip)).max() > 10
    # Pillow cuts off what is behind the point; the factor multiplies its rounding of the grey.
    assert np.abs(ours - theirs).max() <= (2.1 if name == "sharpness" else 1.5)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_each_map_is_pillows(name):
    clip = video(height=40, width=48)
    source = compose_maps(draws(name), height=40, width=48)
    ours = np.asarray(resample(clip, source, (40, 48), height=40, width=48))
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


def test_tables_see_the_picture_as_those_before_left_it():
    clip = video()
    both = jax.jit(change_pixels)(clip, draws("invert", None, "equalize", "solarize_add"), (40, 48))
    one = jax.jit(change_pixels)
    step = clip
    for name in ("invert", "equalize", "solarize_add"):
        step = one(step, draws(name, None, None, None), (40, 48)).astype(jnp.uint8)
    np.testing.assert_array_equal(both.astype(jnp.uint8), step)


def test_no_draw_changes_nothing():
    np.testing.assert_allclose(
        change_pixels(video(), draws(None, None), (40, 48)), video(), atol=1e-4
    )
    np.testing.assert_array_equal(compose_maps(draws(None), height=4, width=6), jnp.eye(3))


def test_both_ways_to_count_agree():
    counts = _count_by_scattering(video())
    np.testing.assert_array_equal(counts, _count_by_comparing(video()))
    assert int(counts.sum()) == video().size


def test_draws_have_the_published_distribution():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda k: draw_operations(k, count=4, magnitude=7.0, deviation=0.5))(keys)
    share = np.bincount(np.asarray(drawn.operation).ravel() + 1, minlength=16) / 16000
    assert abs(share[0] - 0.5) < 0.02
    np.testing.assert_allclose(share[1:], 0.5 / 15, atol=0.006)
    assert abs(float(drawn.strength.mean()) - 0.7) < 0.005
    assert abs(float(drawn.strength.std()) - 0.05) < 0.005


def test_all_frames_get_the_same():
    frame = jnp.broadcast_to(video(1), (4, 40, 48, 3))
    run = jax.jit(jax.vmap(lambda key: augment(key, frame, **SETTINGS | dict(erase=0.0))))
    clips = np.asarray(run(jax.random.split(jax.random.key(0), 16)))
    assert clips.shape == (16, 4, 32, 32, 3) and clips.dtype == np.float32
    np.testing.assert_allclose(clips, np.broadcast_to(clips[:, :1], clips.shape), atol=1e-3)
    # ... and other clips another.
    assert np.abs(clips[0] - clips[1]).mean() > 5
    assert clips.min() >= 0 and clips.max() <= 255.01


def test_one_key_gives_one_result_in_any_batch():
    clips = jnp.stack([video(2) + index for index in range(6)]).astype(jnp.uint8)
    keys = jax.random.split(jax.random.key(1), 6)
    run = jax.jit(jax.vmap(lambda key, clip: augment(key, clip, **SETTINGS)))
    np.testing.assert_allclose(run(keys, clips)[4:5], run(keys[4:5], clips[4:5]), atol=1e-3)


@pytest.mark.parametrize("grey", [False, True])
def test_what_a_clip_does_not_fill_changes_nothing(grey):
    """A clip in the corner of a larger one is augmented like the same clip alone."""
    clip = noise()[..., :1] if grey else noise()
    mean, std = (MEAN[:1], STD[:1]) if grey else (MEAN, STD)
    how = SETTINGS | dict(mean=mean, std=std, erase=0.0)
    room = jnp.pad(clip, [(0, 0), (0, 17), (0, 9), (0, 0)])
    keys = jax.random.split(jax.random.key(2), 64)
    alone = jax.jit(jax.vmap(lambda key: augment(key, clip, **how)))(keys)
    inside = jax.jit(jax.vmap(lambda key, size: augment(key, room, size, **how)))(
        keys, jnp.broadcast_to(jnp.asarray(clip.shape[1:3]), (64, 2))
    )
    np.testing.assert_allclose(inside, alone, atol=0.01)
    whole = jax.jit(jax.vmap(lambda key: augment(key, room, **how)))(keys)
    assert np.abs(whole - alone).mean() > 10


def test_a_flip_is_a_flip():
    clip = video(height=32, width=32)
    flipped = resample(clip, flip_map(32), (32, 32), height=32, width=32)
    np.testing.assert_allclose(flipped, pix.flip_left_right(clip), atol=1e-3)
    keys = jax.random.split(jax.random.key(0), 64)
    # A square picture, cropped to all of it or nearly: what differs is the mirror.
    run = jax.jit(jax.vmap(lambda key: augment(key, clip[:1], **OFF | dict(flip=True))))
    still = jax.jit(jax.vmap(lambda key: augment(key, clip[:1], **OFF)))(keys)
    out = run(keys)
    same = np.isclose(out, still, atol=1e-3).all((1, 2, 3, 4))
    mirrored = np.isclose(out, still[:, :, :, ::-1], atol=1e-3).all((1, 2, 3, 4))
    assert (same ^ mirrored).all() and 16 < same.sum() < 48


def test_resampling_a_box_is_a_bilinear_resize():
    clip = video(height=40, width=48)
    box = Box(*map(jnp.float32, (8, 10, 20, 16)))
    ours = resample(clip, box_map(box, height=32, width=30), (40, 48), height=32, width=30)
    theirs = jax.image.resize(
        clip[:, 10:26, 8:28].astype(jnp.float32), (3, 32, 30, 3), "bilinear", antialias=False
    )
    # The border differs: ours interpolates with what lies outside of the box.
    np.testing.assert_allclose(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], atol=0.02)
    whole = resample(clip, jnp.eye(3), (40, 48), height=40, width=48)
    np.testing.assert_allclose(whole, clip, atol=1e-3)
    outside = resample(clip, jnp.eye(3).at[0, 2].set(100.0), (40, 48), height=40, width=48)
    np.testing.assert_array_equal(outside, GREY)


def test_crops_have_the_published_areas_and_shapes():
    keys = jax.random.split(jax.random.key(0), 2000)
    boxes = jax.vmap(lambda k: crop_box(k, height=256, width=340, min_area=0.08))(keys)
    x, y, wide, high = map(np.asarray, boxes)
    assert (x >= 0).all() and (y >= 0).all() and (x + wide <= 340).all() and (y + high <= 256).all()
    assert (np.abs(np.log(wide / high)) < np.log(4 / 3) + 0.02).all()
    area = wide * high / (256 * 340)
    assert 0.078 < area.min() < 0.1 and area.max() > 0.9
    whole = crop_box(keys[0], height=200, width=100, min_area=1.0)
    assert [int(side) for side in whole] == [0, 33, 100, 133]


def test_erasing_is_one_box_of_unit_noise_in_all_frames():
    clip = jnp.full([4, 48, 48, 3], 77.0)
    keys = jax.random.split(jax.random.key(0), 200)
    erase = jax.jit(jax.vmap(lambda k: erase_box(k, clip, chance=0.25, mean=MEAN, std=STD)))
    out = np.asarray(erase(keys))
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
    """Clips that are 1, 2, 4, ... everywhere, so that any mixture tells its parts."""
    values = 2.0 ** jnp.arange(count)
    return jnp.broadcast_to(values[:, None, None, None, None], (count, 2, 16, 16, 3))


def mix(key, rows=None, *, mixup=0.8, cutmix=1.0, group=4, switch=0.5):
    rows = jnp.arange(8) if rows is None else rows
    targets = jnp.eye(8)[: len(rows)]
    return mix_clips(
        key, ramp_batch(8)[: len(rows)], targets, rows,
        group=group, mixup=mixup, cutmix=cutmix, switch=switch,
    )  # fmt: skip


def test_mixup_mixes_pairs_of_a_group_by_the_share_of_the_target():
    mixed, targets = mix(jax.random.key(0), cutmix=0.0)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    shares = np.diagonal(targets)
    for index in range(8):
        partner = 4 * (index // 4) + 3 - index % 4
        assert targets[index, partner] == pytest.approx(1 - shares[index], abs=1e-6)
        blend = shares[index] * 2.0**index + (1 - shares[index]) * 2.0**partner
        np.testing.assert_allclose(mixed[index], blend, rtol=1e-5)
    # One share to a group, another to the next.
    assert np.ptp(shares[:4]) < 1e-6 and abs(shares[0] - shares[4]) > 1e-3


def test_the_share_of_a_cutmix_target_is_the_area():
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


def test_a_group_mixes_alike_wherever_it_lies():
    mixed, targets = mix(jax.random.key(5))
    alone = mix_clips(
        jax.random.key(5), ramp_batch()[4:], jnp.eye(8)[4:], jnp.arange(4, 8),
        group=4, mixup=0.8, cutmix=1.0, switch=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(alone[0], mixed[4:])
    np.testing.assert_array_equal(alone[1], targets[4:])


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


def batch_of(count, frames=2, height=24, width=32):
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (count, frames, height, width, 3), np.uint8)),
        "label": jnp.arange(count, dtype=jnp.int32) % 3,
        "row": jnp.arange(count, dtype=jnp.int32),
    }


@pytest.mark.slow
def test_one_device_and_eight_take_the_same_step_and_move_no_clips(task):
    batch, key = batch_of(16), jax.random.key(7)
    params = task.init(jax.random.key(0))
    one = jax.jit(task.train_sums)(params, batch, key)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    step = jax.jit(task.train_sums, in_shardings=(whole, shard, whole), out_shardings=whole)
    step = step.lower(params, batch, key).compile()
    eight = step(*jax.device_put((params, batch, key), (whole, shard, whole)))
    for name in one:
        assert float(eight[name]) == pytest.approx(float(one[name]), rel=1e-4), name
    moves = r"\b(all-gather|all-to-all|collective-permute|reduce-scatter)\b"
    assert not set(re.findall(moves, step.as_text()))


@pytest.mark.slow
def test_a_clip_is_trained_alike_in_any_part_of_the_batch(task):
    batch, key = batch_of(8), jax.random.key(7)
    params = task.init(jax.random.key(0))
    sums = jax.jit(task.train_sums)
    first, second = ({k: v[part] for k, v in batch.items()} for part in (slice(4), slice(4, 8)))
    halves = jax.tree.map(jnp.add, sums(params, first, key), sums(params, second, key))
    for name, value in sums(params, batch, key).items():
        assert float(halves[name]) == pytest.approx(float(value), rel=1e-4), name


def test_evaluation_is_not_augmented(task):
    params = task.init(jax.random.key(0))
    batch = batch_of(4, height=16, width=16)
    del batch["row"]
    first, second = (jax.jit(task.eval_sums)(params, batch) for _ in range(2))
    assert first["error"].shape == (4,)
    np.testing.assert_array_equal(first["error"], second["error"])
    # An untrained head, nearly zero: the loss of a guess among three.
    np.testing.assert_allclose(first["error"], np.log(3), atol=0.01)
