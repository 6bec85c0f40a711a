"""The probing task: classify clips from the tokens of a frozen encoder.

There is one head per learning rate of `config.rates`, so that the result does not depend on the
choice of one rate. All train at once on the same clips and do not affect each other.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from videomae_jax.augment.clip import smooth_targets
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.probe import KINDS, Probe
from videomae_jax.models.tokens import patchify
from videomae_jax.tasks import classify
from videomae_jax.tasks.build import (
    canvas_text,
    clip_geometry,
    encoder_fields,
    patches_text,
    row_keys,
)
from videomae_jax.tasks.classify import eval_sampler, train_sampler
from videomae_jax.tasks.task import Batch, Params, Task


def build_model(config: ConfigDict) -> Probe:
    """Return the probe of `config.model`, executed as `config.run` specifies."""
    model = config.model
    if model.head not in KINDS:
        raise UserError(f"model.head {model.head!r} is unknown: use {' or '.join(KINDS)}")
    classify.check_classes(model)
    rates = tuple(config.rates)
    if not rates or min(rates) <= 0 or len(set(map(_name, rates))) < len(rates):
        raise UserError(f"rates is {rates}: give different numbers above 0, one per head")
    return Probe(classes=model.classes, head=model.head, heads=len(rates), **encoder_fields(config))


def prepare(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Number the classes as `classify.prepare` does; raise UserError without `init_from`."""
    if not config.init_from:
        raise UserError(
            "config.init_from is not set: a probe measures a trained encoder, give "
            "--config.init_from=CHECKPOINT"
        )
    return classify.prepare(config, train, held_out)


def build_task(config: ConfigDict) -> Task:
    """Return the probing task of a locked config; its batches are those of `classify`."""
    model = build_model(config)
    clip = config.clip
    change = config.augment
    classify.check_clip(clip)
    geometry = clip_geometry(clip, model)
    grid = geometry.grid
    forward_flops, _ = flops.finetune_flops(
        model.encoder, tokens=geometry.tokens, values=geometry.values, classes=model.classes
    )
    augment_clips = classify.make_augment(
        config, operations=0, magnitude=0.0, deviation=0.0, erase=0.0
    )

    @jax.jit
    def init(key):
        return model.init(key, model.blank_patches(grid), grid)["params"]

    multi_label = config.model.multi_label
    sums_of_head = classify.multi_label_sums if multi_label else classify.class_sums

    def clip_sums(params, batch, video):
        logits: Any = model.apply({"params": params}, patchify(video, model.patch), grid)
        targets = smooth_targets(batch["label"], classes=model.classes, smoothing=0.0)
        heads = jax.vmap(sums_of_head, in_axes=(1, None, None))(logits, targets, batch["label"])
        named = {
            f"{name}_x{_name(rate)}": heads[name][index]
            for name in (["error"] if multi_label else ["error", "top1"])
            for index, rate in enumerate(config.rates)
        }
        # Summed over the heads, so that each has the gradient that it would have alone.
        return {"error": heads["error"].sum(0), "count": heads["count"][0], **named}

    def train_sums(params, batch, key):
        keys = row_keys(key, batch["row"])
        video = augment_clips(keys, batch["video"], batch.get("size"))
        sums = clip_sums(params, batch, video)
        # Scores of single heads on one small batch mean little: the loss of all is enough.
        return {name: sums[name].sum() for name in ("error", "count")}

    def eval_sums(params, batch):
        return clip_sums(params, batch, batch["video"])

    def outputs(params: Params, batch: Batch) -> jax.Array:
        logits: Any = model.apply({"params": params}, patchify(batch["video"], model.patch), grid)
        return classify.class_probabilities(logits, multi_label=True)

    rates = tuple(config.rates)
    return Task(
        init=init,
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=functools.partial(summarize, rates=rates),
        pictures=lambda params, batch: {},
        samplers=lambda: (train_sampler(config), eval_sampler(config)),
        check_clips=lambda clips: None,
        wrap_optimizer=functools.partial(heads_only, rates=rates),
        train_flops=forward_flops,  # the backward pass of the heads is negligible
        summary={
            "clip": f"{clip.frames} frames, {clip.height} x {clip.width}, "
            f"{patches_text(geometry, model)}; {model.classes} classes",
            "augment": f"crops from {change.min_area:g} of the image, "
            f"flip {'on' if change.flip else 'off'}; {canvas_text(clip)}",
            "heads": f"{model.heads} {model.head}, the encoder frozen; the rate x "
            + ", ".join(map(_name, config.rates)),
            "FLOPs": f"{forward_flops / 1e9:.4g} G forward a clip",
        },
        outputs=outputs if multi_label else None,
        score=functools.partial(score_multi_label, rates=rates) if multi_label else None,
    )


def heads_only(
    optimizer: optax.GradientTransformation, *, rates: tuple[float, ...]
) -> optax.GradientTransformation:
    """Return an optimizer of the heads only, with one learning rate factor per head."""
    parts = {"encoder": optax.set_to_zero(), "heads": optax.chain(optimizer, scale_by_head(rates))}
    return optax.partition(parts, {name: name for name in parts})


def scale_by_head(rates: tuple[float, ...]) -> optax.GradientTransformation:
    """Multiply the updates of stacked heads, [R, ...] each, by one rate per head."""

    def scale(updates, _):
        factors = jnp.asarray(rates, jnp.float32)
        return jax.tree.map(lambda u: u * factors.reshape(-1, *[1] * (u.ndim - 1)), updates)

    return optax.stateless(scale)


def summarize(sums: Mapping[str, Any], *, rates: tuple[float, ...]) -> dict[str, jax.Array]:
    """Return the loss and top1 of the best head, its rate, and the top1 of every head.

    In training, which has no sums per head, return only the mean loss of all heads. Of several
    labels, which have no top1, only the lowest loss of a head: see `score_multi_label`.
    best_rate and the numbers in keys such as "top1_x3" are multiples of the run's learning rate.
    The best head is the first with the highest top1. It is chosen on the clips that score it, so
    its top1 is slightly optimistic.
    """
    count = sums["count"]
    if sums.keys() == {"error", "count"}:
        return {"loss": sums["error"] / count / len(rates)}
    losses = jnp.stack([sums[f"error_x{_name(rate)}"] / count for rate in rates])
    if f"top1_x{_name(rates[0])}" not in sums:
        return {"loss": losses.min()}
    top1 = jnp.stack([sums[f"top1_x{_name(rate)}"] / count for rate in rates])
    best = jnp.argmax(top1)
    every = {f"top1_x{_name(rate)}": value for rate, value in zip(rates, top1, strict=True)}
    return {
        "loss": losses[best],
        "top1": top1[best],
        "best_rate": jnp.asarray(rates)[best],
        **every,
    }


def score_multi_label(
    videos: Videos, ids: np.ndarray, probabilities: np.ndarray, *, rates: tuple[float, ...]
) -> dict[str, float]:
    """Return the mAP of the best head, its rate, and the mAP of every head, see `Task.score`.

    probabilities: [n, heads, classes]. The first head with the highest mAP is the best.
    """
    every = {
        rate: classify.score_multi_label(videos, ids, probabilities[:, index])["map"]
        for index, rate in enumerate(rates)
    }
    best = max(every, key=lambda rate: every[rate])
    named = {f"map_x{_name(rate)}": value for rate, value in every.items()}
    return {"map": every[best], "best_rate": best, **named}


def _name(rate: float) -> str:
    return f"{rate:g}"
