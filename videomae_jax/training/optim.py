"""The learning-rate schedule and AdamW, equal to those of the reference, and Muon."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Task

OPTIMIZERS = ("adamw", "muon")

# The parameters that are matrices, by the last part of their names, with the axes of input and
# output. The other axes stack matrices. The heads of an attention are one matrix.
MATRICES = {
    "kernel": optax.contrib.MuonDimensionNumbers(-2, -1),
    "qkv": optax.contrib.MuonDimensionNumbers(1, (3, 4)),  # [depth, D, 3, heads, d]
    "value": optax.contrib.MuonDimensionNumbers(1, (2, 3)),  # of probes, [R, D, heads, d]
}


class Schedule(NamedTuple):
    """The length of a run in steps, and its learning rate at the peak and at the end."""

    steps: int
    warmup_steps: int
    peak_lr: float
    final_lr: float


def make_schedule(config: ConfigDict, *, examples: int) -> Schedule:
    """Return the schedule of a config: its epochs in steps, its base rate scaled by the batch.

    An epoch is examples // batch_size steps. The peak is base_lr * batch_size / 256, or lr;
    min_lr is scaled like base_lr, and not scaled with lr. Raises UserError if both or neither
    rate is set, or for an impossible length.
    """
    if (config.lr > 0) == (config.base_lr > 0):
        both = f"lr={config.lr:g} and base_lr={config.base_lr:g}"
        raise UserError(
            f"{both} are both set: add --config.base_lr=0 to use lr without scaling"
            if config.lr > 0
            else f"{both}: set one of them above 0"
        )
    scale = config.batch_size / 256 if config.base_lr > 0 else 1.0
    per_epoch = max(1, examples // config.batch_size)
    steps = config.steps or config.epochs * per_epoch
    warmup = config.warmup_steps if config.steps else config.warmup_epochs * per_epoch
    if steps < 1:
        raise UserError(f"epochs {config.epochs}: use 1 or more, or set steps")
    if not 0 <= warmup < steps:
        raise UserError(
            f"{warmup} warm-up steps of {steps}: use 0 to {steps - 1} "
            f"({'warmup_steps' if config.steps else f'warmup_epochs, {per_epoch} steps each'})"
        )
    peak = (config.lr or config.base_lr) * scale
    return Schedule(steps, warmup, peak, config.min_lr * scale)


def warmup_cosine(schedule: Schedule) -> optax.Schedule:
    """Return a function step -> learning rate, float32: a linear warm-up, then a half cosine.

    As in the reference, the last warm-up step and the first cosine step both have the peak, and
    no step reaches the final rate.
    """
    span = schedule.peak_lr - schedule.final_lr

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        warm = schedule.peak_lr * step / max(schedule.warmup_steps - 1, 1)
        progress = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
        cosine = schedule.final_lr + 0.5 * span * (1 + jnp.cos(math.pi * progress))
        return jnp.where(step < schedule.warmup_steps, warm, cosine)

    return rate


def average_decay(config: ConfigDict, task: Task, *, steps: int) -> optax.Schedule | None:
    """Return a function step -> the weight of the old moving average before that step.

    None if the run keeps no average. steps: of the run.
    """
    if task.average_decay:
        return task.average_decay(steps)
    return optax.constant_schedule(config.ema_decay) if config.ema_decay else None


def decay_mask(params: Any) -> Any:
    """Return a tree of bool: True for matrices, not for biases, norms and the mask token."""
    # By name, because stacked biases have a depth axis and look like matrices.
    return jax.tree_util.tree_map_with_path(lambda path, _: _last_part(path) in MATRICES, params)


def matrix_axes(params: Any) -> Any:
    """Return a tree with the axes of each matrix, and None for other parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: MATRICES.get(_last_part(path)), params)


def _last_part(path: tuple) -> str:
    return path_name(path).rpartition("/")[2]


def base_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimizer of `config.optimizer`, without the learning rate.

    `step.train_step` multiplies by -rate, so that it logs the rate that it used. Raises UserError
    for an unknown kind.
    """
    settings = config.optimizer
    if settings.kind not in OPTIMIZERS:
        raise UserError(f"optimizer.kind {settings.kind!r}: use {' or '.join(OPTIMIZERS)}")
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    moments = dict(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    return optax.chain(
        clip,
        scale_by_muon(**moments) if settings.kind == "muon" else optax.scale_by_adam(**moments),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
    )


def scale_by_muon(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Make the momentum of each matrix orthogonal, and use Adam with Nesterov momentum elsewhere.

    Updates have the root mean square of Adam's, about 0.2, so rates and weight decay for AdamW
    serve (2502.16982, "Muon is Scalable for LLM Training"). b1: of both momenta.
    """
    return optax.contrib.muon(
        learning_rate=-1.0,  # it changes the sign, as `step.train_step` does
        beta=b1,
        eps=eps,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrix_axes,
    )


def make_optimizer(config: ConfigDict, task: Task) -> optax.GradientTransformation:
    """Return the optimizer, wrapped by the task or with the layer decay of `config.layer_decay`.

    Raises UserError for an impossible layer decay or an unknown kind.
    """
    if task.wrap_optimizer:
        if config.layer_decay != 1:
            raise UserError(
                f"layer_decay {config.layer_decay:g} has no effect in the task {config.task}: use 1"
            )
        return task.wrap_optimizer(base_optimizer(config))
    if not 0 <= config.layer_decay <= 1:
        raise UserError(f"layer_decay is {config.layer_decay:g}: use 0 (frozen blocks) to 1 (none)")
    if config.layer_decay == 1:
        return base_optimizer(config)
    return optax.chain(base_optimizer(config), scale_by_layer(config.layer_decay))


def layer_decay_scales(depth: int, decay: float) -> np.ndarray:
    """Return decay^(depth + 1 - id) for each layer id, float64 [depth + 2].

    Id 0 is the patch embedding, i + 1 is block i, and depth + 1 is the layers after the blocks.
    A decay of 0 trains only these.
    """
    return decay ** np.arange(depth + 1, -1, -1, dtype=np.float64)


def layer_scales(params: Any, decay: float) -> Any:
    """Return the learning rate factor of each leaf of a model's parameters.

    Factors are float32, [depth, 1, ...] for stacked blocks and scalars for other leaves.
    """
    depth = jax.tree.leaves(params["encoder"]["blocks"])[0].shape[0]
    scales = layer_decay_scales(depth, decay).astype(np.float32)

    def leaf_scale(path, leaf):
        name = path_name(path)
        if name.startswith("encoder/embed/"):
            return scales[0]
        if name.startswith("encoder/blocks/"):
            return scales[1:-1].reshape(depth, *[1] * (leaf.ndim - 1))
        return scales[-1]

    return jax.tree_util.tree_map_with_path(leaf_scale, params)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiply updates by `layer_scales`; chain it after the optimizer.

    Before Adam it would have no effect, because Adam divides by the size of the gradients. It
    also scales the weight decay, as the learning rate does.
    """

    def scale(updates, _):
        return jax.tree.map(jnp.multiply, updates, layer_scales(updates, decay))

    return optax.stateless(scale)
