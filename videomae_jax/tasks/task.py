"""The interface of a task: its module, and the functions that the training loop calls."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from videomae_jax.data.videos import Videos

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
    # AdamW -> the optimizer of the task; None where all parameters are trained alike
    wrap_optimizer: (
        Callable[[optax.GradientTransformation], optax.GradientTransformation] | None
    ) = None


class TaskModule(Protocol):
    """A module that defines a task, see `tasks.TASKS`."""

    def prepare(
        self, config: ConfigDict, train: Videos, held_out: Videos | None
    ) -> tuple[ConfigDict, Videos, Videos | None]:
        """Complete the config and the labels with what the videos say."""

    def build_model(self, config: ConfigDict) -> Any:
        """Return the Flax module of `config.model`."""

    def build_task(self, config: ConfigDict) -> Task:
        """Return the task of a prepared config."""

    def eval_sampler(self, config: ConfigDict) -> Callable:
        """Return the sampler of evaluation clips."""
