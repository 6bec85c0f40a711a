"""Evaluation during training: every held-out video once, whatever the devices and the batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.config import load_config
from videomae_jax.data.samplers import DenseSampler
from videomae_jax.data.sources import read_videos
from videomae_jax.devices.distributed import numbers_of_first
from videomae_jax.devices.sharding import make_mesh
from videomae_jax.tasks import detect
from videomae_jax.tasks.task import Task
from videomae_jax.training import evaluation
from videomae_jax.training.evaluation import evaluate
from videomae_jax.training.optim import Schedule, base_optimizer, warmup_cosine
from videomae_jax.training.step import jit_steps

READABLE = [0, 1, 2, 3, 4, 5, 8, 9]  # of `unreadable_list`
SAMPLER = DenseSampler(frames=2, stride=2, height=16, width=16, channels=3, train=False)
WIDE = dataclasses.replace(SAMPLER, width=32)


class TwoShapes:
    """Makes a wide clip of every third video."""

    def groups(self, videos, agree):
        assert agree is numbers_of_first  # or the processes might run different batches
        wide = list(range(0, len(videos), 3))
        return [(sorted(set(range(len(videos))) - set(wide)), SAMPLER), (wide, WIDE)]


def brightness_task(scored):
    """Return a task whose output is the mean pixel of a clip plus its only parameter."""

    def outputs(params, batch):
        return batch["video"].mean((1, 2, 3)) + params["head"]["bias"]

    def score(videos, ids, values):
        scored.append((ids, values))
        return {"map": float(values.mean())}

    return Task(
        init=lambda key: {"head": {"bias": jnp.zeros(3)}},
        train_sums=lambda params, batch, key: {},
        eval_sums=lambda params, batch: {
            "error": outputs(params, batch).mean(-1),
            "count": jnp.ones(len(batch["video"])),
        },
        summarize=lambda sums: {"loss": sums["error"] / sums["count"]},
        pictures=lambda params, batch: {},
        samplers=lambda: (SAMPLER, SAMPLER),
        check_clips=lambda clips: None,
        train_flops=0.0,
        summary={},
        outputs=outputs,
        score=score,
    )


def run(videos, *, devices, batch_size, sampler=SAMPLER, stopped=lambda: False, outputs=None):
    """Evaluate; return the metrics, what `score` was given, and the note on unreadable videos."""
    overrides = [f"--config.batch_size={batch_size}", "--config.repeats=1"]
    config = load_config("finetune:tiny,custom", overrides)
    scored = []
    task = brightness_task(scored)
    task = task._replace(outputs=outputs or task.outputs)
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    schedule = warmup_cosine(Schedule(100, 2, 1e-3, 1e-5))
    with jax.set_mesh(mesh):
        functions = jit_steps(
            task, base_optimizer(config), schedule, mesh, seed=0, accumulation=1, ema_decay=0.5
        )
        state = functions.init()
        average = jax.tree.map(lambda x: x + 100, state.ema)
        found = evaluate(
            config,
            task,
            functions,
            state._replace(ema=average),
            videos=videos,
            sampler=sampler,
            mesh=mesh,
            knn=None,
            stopped=stopped,
        )
    return found, scored


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 3), (8, 8)])
def test_a_score_sees_every_readable_video_once_and_in_order(unreadable_list, devices, batch_size):
    videos = read_videos(unreadable_list)
    (metrics, note, _), scored = run(videos, devices=devices, batch_size=batch_size)
    clips = [SAMPLER(videos, index, np.random.default_rng(0)) for index in READABLE]
    expected = np.stack([clip.mean((0, 1, 2)) for clip in clips])
    assert len(scored) == 2  # of the weights, and of their average
    for (ids, values), added in zip(scored, (0, 100), strict=True):
        assert ids.tolist() == READABLE
        np.testing.assert_allclose(values, expected + added, rtol=1e-5)
    assert metrics["map"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert metrics["ema_map"] == pytest.approx(metrics["map"] + 100, rel=1e-6)
    assert "2 of 10 videos unreadable" in note


def test_a_video_that_two_processes_cannot_read_counts_once(unreadable_list, monkeypatch):
    """Such as one with key frames in the parts of both."""
    monkeypatch.setattr(
        evaluation.multihost_utils, "process_allgather", lambda own: np.stack([own, own])
    )
    (_, note, _), _ = run(read_videos(unreadable_list), devices=1, batch_size=3)
    assert "2 of 10 videos unreadable" in note


def test_clips_of_several_shapes_are_scored_together(unreadable_list):
    videos = read_videos(unreadable_list)
    _, scored = run(videos, devices=1, batch_size=3, sampler=TwoShapes())
    ids, values = scored[0]
    assert ids.tolist() == READABLE
    samplers = [SAMPLER if index % 3 else WIDE for index in READABLE]
    clips = [make(videos, i, None) for make, i in zip(samplers, READABLE, strict=True)]
    expected = np.stack([clip.mean((0, 1, 2)) for clip in clips])
    np.testing.assert_allclose(values, expected, rtol=1e-5)


class WithBoxes(DenseSampler):
    """Makes clips with as many boxes as the last digit of their number says, of at most 9."""

    @property
    def spec(self):
        return super().spec | {"present": ((9,), np.bool_)}

    def sample_many(self, videos, index, rngs):
        present = np.tile(np.arange(9) < index, (len(rngs), 1))
        return super().sample_many(videos, index, rngs) | {"present": present}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 3), (8, 8)])
def test_a_score_gets_present_boxes_only(unreadable_list, devices, batch_size):
    def outputs(params, batch):
        brightness = batch["video"].mean((1, 2, 3, 4))
        return brightness[:, None] + jnp.arange(9) + params["head"]["bias"][0]

    videos = read_videos(unreadable_list)
    sampler = WithBoxes(**dataclasses.asdict(SAMPLER))
    _, scored = run(
        videos, devices=devices, batch_size=batch_size, sampler=sampler, outputs=outputs
    )
    ids, values = scored[0]
    assert ids.tolist() == [index for index in READABLE for _ in range(index)]
    means = {index: SAMPLER(videos, index, None).mean() for index in READABLE}
    expected = [means[index] + box for index in READABLE for box in range(index)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_stop_in_the_middle_gives_no_score(unreadable_list):
    calls = iter([False, False, True])
    found, scored = run(
        read_videos(unreadable_list), devices=1, batch_size=3, stopped=lambda: next(calls)
    )
    assert found is None and not scored


def test_outputs_cost_no_second_forward_pass():
    """XLA finds what they share with the sums."""
    small = ["model.classes=3", "model.encoder.depth=1", "clip.height=32", "clip.width=32"]
    config = load_config("detect:tiny,custom", [f"--config.{value}" for value in small])
    task = detect.build_task(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    spec = detect.eval_sampler(config).spec.items()
    batch = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in spec}

    def cost(function):
        return jax.jit(function).lower(params, batch).compile().cost_analysis()["flops"]

    both = cost(lambda params, batch: (task.eval_sums(params, batch), task.outputs(params, batch)))
    assert both < 1.01 * cost(task.eval_sums)
