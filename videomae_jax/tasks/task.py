"""What the training loop knows of a task: a few functions and two samplers.

The module of a task has two functions: `prepare(config, train, held_out)` completes the config
with what the videos say, and `build_task(config)` returns the Task.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

Params = Any
# "video" uint8 [B, F, H, W, C], "id" int32 [B], maybe "label"; in training "row" int32 [B] and,
# where clips do not fill all of it, "size" int32 [B, 2], the height and width that they do
Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


class Task(NamedTuple):
    """A task, built from a config; everything in it is a pure function.

    Losses and scores travel as sums with their counts, so that micro-batches, devices and
    last partial batches add up exactly; `summarize` divides once, at the end.
    """

    init: Callable[[jax.Array], Params]  # key -> float32 parameters
    train_sums: Callable[[Params, Batch, jax.Array], Sums]  # with the step's key; scalars
    eval_sums: Callable[[Params, Batch], Sums]  # per clip, [B]; no randomness but the id's
    summarize: Callable[[Sums], dict[str, jax.Array]]  # scalar sums -> metrics, "loss" first
    pictures: Callable[[Params, Batch], dict[str, np.ndarray]]  # uint8 [h, w, 3] each
    samplers: Callable[[], tuple[Callable, Callable]]  # what a clip takes of a video: train, eval
    check_clips: Callable[[int], None]  # UserError unless a device can train on so many at once
    train_flops: float  # of one clip, forward and backward
    summary: dict[str, str]  # lines of the start banner
    knn: ConfigDict | None = None  # `config.knn`, if features are scored at each evaluation
