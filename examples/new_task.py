"""A new task on the library's training loop: does a clip play forwards or backwards?

python examples/new_task.py WORKDIR [STEPS]

The module is the task: it has the functions that `videomae_jax/tasks/task.py` describes. Data,
sharding, checkpoints, resume, logging and signals are those of `videomae train`.
"""

import functools
import math
import sys

import jax
import jax.numpy as jnp

from videomae_jax.augment.resize import resize_clip
from videomae_jax.config import load_recipe
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.flops import finetune_flops
from videomae_jax.models.tokens import patch_grid, patchify
from videomae_jax.tasks import classify, pretrain
from videomae_jax.tasks.build import encoder_fields
from videomae_jax.tasks.task import Task
from videomae_jax.training.loop import train

eval_sampler = pretrain.eval_sampler


def prepare(config, train_videos, eval_videos):
    """Return everything unchanged: this task needs no labels."""
    return config, train_videos, eval_videos


def build_model(config) -> VideoClassifier:
    """Return a classifier with two classes, forwards and backwards."""
    return VideoClassifier(classes=2, **encoder_fields(config))


def build_task(config) -> Task:
    """Return the task: a classifier that sees each clip in a random direction."""
    model, clip = build_model(config), config.clip
    grid = patch_grid((clip.frames, clip.height, clip.width), model.patch)
    values = math.prod(model.patch) * len(model.mean)
    resize = functools.partial(resize_clip, height=clip.height, width=clip.width)

    def clip_sums(params, video, key, ids):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
        backwards = jax.vmap(jax.random.bernoulli)(keys)
        video = jnp.where(backwards[:, None, None, None, None], video[:, ::-1], video)
        logits = model.apply({"params": params}, patchify(video, model.patch), grid)
        labels = backwards.astype(jnp.int32)
        return classify.class_sums(logits, jax.nn.one_hot(labels, 2), labels)

    def train_sums(params, batch, key):
        video = batch["video"]
        if "size" in batch:  # accelerators resize the clips of the training sampler
            video = jax.vmap(resize)(video, batch["size"])
        return jax.tree.map(jnp.sum, clip_sums(params, video, key, batch["id"]))

    return Task(
        init=lambda key: init_classifier(model, key, grid),
        train_sums=train_sums,
        eval_sums=lambda params, batch: clip_sums(
            params, batch["video"], jax.random.key(0), batch["id"]
        ),
        summarize=classify.summarize,
        pictures=lambda params, batch: {},
        samplers=lambda: (pretrain.train_sampler(config), eval_sampler(config)),
        check_clips=lambda clips: None,
        train_flops=finetune_flops(model.encoder, tokens=math.prod(grid), values=values, classes=2)[
            1
        ],
        summary={"task": "forwards or backwards"},
    )


def main(workdir: str, steps: int = 500) -> None:
    """Train on the demo's clips."""
    config = load_recipe("demo")
    config.name, config.task, config.lr = "Forwards or backwards", "direction", 1e-3
    config.steps, config.warmup_steps = steps, steps // 10
    config.log_every = config.eval_every = config.save_every = max(1, steps // 5)
    train(config, sys.modules[__name__], workdir=workdir, load_weights=lambda path: None)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
