"""The pre-training task: masks, resizing on the device, samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny

from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.tasks import pretrain


def test_each_clip_of_a_video_has_a_mask_of_its_own():
    config = tiny("--config.repeats=2", "--config.batch_size=1")
    task = pretrain.build_task(config)
    params = task.init(jax.random.key(0))
    (clip,) = synthetic_batches(shape=(4, 32, 32, 3), batch_size=1, seed=0, num_steps=1)
    ids = jnp.full([1], 7, jnp.int32)
    sums = jax.jit(task.train_sums)
    first, second, third = (
        sums(params, clip | {"id": ids, "row": ids * 0 + row}, jax.random.key(1))
        for row in (0, 1, 2)
    )
    assert first["error"] != second["error"] and first["error"] == third["error"]


@pytest.mark.slow
def test_a_clip_is_resized_before_anything_else():
    task = pretrain.build_task(tiny())
    params = task.init(jax.random.key(0))
    (batch,) = synthetic_batches(shape=(4, 32, 32, 3), batch_size=2, seed=0, num_steps=1)
    sums = jax.jit(task.train_sums)
    plain = sums(params, batch, jax.random.key(1))
    canvas = np.pad(batch["video"], [(0, 0), (0, 0), (0, 8), (0, 16), (0, 0)])
    size = np.full([2, 2], 32, np.int32)
    same = sums(params, batch | {"video": canvas, "size": size}, jax.random.key(1))
    assert float(same["error"]) == pytest.approx(float(plain["error"]), rel=1e-6)
    # Twice as large and averaged again.
    large = batch["video"].repeat(2, axis=2).repeat(2, axis=3)
    shrunk = sums(params, batch | {"video": large, "size": 2 * size}, jax.random.key(1))
    assert float(shrunk["error"]) == pytest.approx(float(plain["error"]), rel=0.1)


def test_accelerators_resize_and_cpus_leave_it_to_the_host(monkeypatch):
    config = tiny("--config.clip.source_width=20")
    samplers = pretrain.build_task(config).samplers
    train, evaluate = samplers()
    assert train.shape == evaluate.shape == (4, 32, 32, 3) and "size" not in train.spec
    monkeypatch.setattr(pretrain, "platform_in_use", lambda: "tpu")
    train, evaluate = samplers()
    # Never smaller than the clip: larger boxes come in its size.
    assert (
        train.shape == (4, 256, 32, 3) and "size" in train.spec and evaluate.shape == (4, 32, 32, 3)
    )
