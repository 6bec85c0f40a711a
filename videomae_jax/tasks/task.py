"""The interface of a task: its module, and the functions that the training loop calls."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from videomae_jax.data.videos import Videos

if TYPE_CHECKING:  # it imports PyAV, which is only needed where videos are read
    from videomae_jax.data.samplers import ClipSampler

Params = Any
# "video" uint8 [B, F, H, W, C], "id" int32 [B] and, for labelled videos, "label" int32 [B]. In
# training also "row" int32 [B] and, where clips may fill only the top left part of "video",
# "size" int32 [B, 2], their height and width. In evaluation also "valid" bool [B]. Boxes of clips
# have "present" bool [B, M].
Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


class Teacher(NamedTuple):
    """A frozen, trained model that a task learns from.

    params: the shapes and dtypes of its parameters on the devices. flops: of its forward pass of
    one training clip, a part of `Task.train_flops`.
    """

    params: Params  # ShapeDtypeStructs
    flops: float


class Task(NamedTuple):
    """A task, built from a config; everything in it is a pure function.

    Losses and scores are sums with their counts until `summarize` divides them, so that parts of
    a batch, devices and the partial last batch add up exactly.
    """

    init: Callable[[jax.Array], Params]  # key -> float32 parameters; jitted
    # (params, batch, key of the step) -> scalars; with `average_decay` also average=, the moving
    # average of the parameters. With `teacher` these, `eval_sums` and `outputs` also get teacher=,
    # its parameters, which have no gradient.
    train_sums: Callable[..., Sums]
    eval_sums: Callable[..., Sums]  # (params, batch) -> one value per clip, [B]; random only by id
    # Scalar sums of jax or NumPy -> metrics, "loss" first.
    summarize: Callable[[Mapping[str, Any]], dict[str, jax.Array]]
    pictures: Callable[[Params, Batch], dict[str, np.ndarray]]  # -> uint8 [height, width, 3] each
    samplers: Callable[[], tuple["ClipSampler", "ClipSampler"]]  # of training and evaluation
    # Raises UserError unless a device can train on this number of clips at once.
    check_clips: Callable[[int], None]
    train_flops: float  # of one clip, forward and backward, with the teacher
    summary: dict[str, str]  # lines of the start banner
    knn: ConfigDict | None = None  # `config.knn` if every evaluation also runs kNN
    # The optimizer of the config -> that of the task, without `config.layer_decay`; None: as it is.
    wrap_optimizer: (
        Callable[[optax.GradientTransformation], optax.GradientTransformation] | None
    ) = None
    # What `score` needs of each clip, [B, ...], or of each box, [B, M, ...], if batches have
    # "present"; None: all metrics are made of sums. It begins like `eval_sums`, and as they are
    # compiled together XLA computes what they share once.
    outputs: Callable[..., jax.Array] | None = None  # (params, batch)
    # Metrics that no sum gives, such as average precision: (held-out videos, ids int64 [n],
    # ascending, outputs [n, ...]) -> {name: value}. Of a video that could not be read, or a box
    # that is absent, there is no row.
    score: Callable[[Videos, np.ndarray, np.ndarray], dict[str, float]] | None = None
    # Steps of the run -> the schedule of the decay of the moving average; None for the constant
    # `config.ema_decay`.
    average_decay: Callable[[int], optax.Schedule] | None = None
    teacher: Teacher | None = None


class TaskModule(Protocol):
    """A module that defines a task, see `tasks.TASKS`."""

    def prepare(
        self, config: ConfigDict, train: Videos, held_out: Videos | None
    ) -> tuple[ConfigDict, Videos, Videos | None]:
        """Complete the config and the labels from the videos."""

    def build_model(self, config: ConfigDict) -> Any:
        """Return the Flax module of `config.model`."""

    def build_task(self, config: ConfigDict) -> Task:
        """Return the task of a prepared config."""

    def eval_sampler(self, config: ConfigDict) -> "ClipSampler":
        """Return the sampler of evaluation clips."""
