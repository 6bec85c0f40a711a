"""Evaluate frozen features by k-nearest-neighbour classification."""

from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax import metrics
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, number_labels, to_one_label
from videomae_jax.errors import UserError
from videomae_jax.inference.engine import (
    data_mesh,
    jit_predict,
    join_predictions,
    place_params,
    run_batches,
)
from videomae_jax.inference.network import Network, clip_sampler, outputs
from videomae_jax.metrics import Proportion
from videomae_jax.tasks.task import Params


class Neighbours(NamedTuple):
    """The result of `evaluate_neighbours`.

    top1: the accuracy for each k. protocol: how they were measured, in words. unreadable:
    {path: reason}. notes: lines to print, on unreadable videos.
    """

    top1: dict[int, Proportion]
    protocol: str
    unreadable: dict[str, str]
    notes: list[str]


def evaluate_neighbours(
    network: Network,
    params: Params,
    config: ConfigDict,
    train: Videos,
    held_out: Videos,
    *,
    ks: tuple[int, ...],
    temperature: float = metrics.TEMPERATURE,
    batch_size: int | None = None,
) -> Neighbours:
    """Classify each held-out video by a vote of its k nearest training videos, for every k.

    ks, temperature: see `metrics.neighbour_votes`. batch_size: videos on all devices, None for
    8 on each. Raises UserError for a detector, if the videos have no labels or several, if none
    can be read, and for an impossible k, temperature or batch size.
    """
    if config.task == "detect":
        raise UserError(
            "kNN compares clips of whole videos, and this model is a detector, of boxes in key "
            "frames: use the model that its training began with"
        )
    names = train.class_names or ()
    reason = "kNN compares single labels, use a probe (videomae train --config=probe)"
    train, held_out = (
        to_one_label(number_labels(videos, names), reason=reason) for videos in (train, held_out)
    )
    metrics.check_neighbours(ks, temperature=temperature, bank=len(train))
    mesh = data_mesh()

    def features(params: Params, video: jax.Array) -> jax.Array:
        return outputs(network, params, video)["features"]

    def collect(videos: Videos) -> tuple[np.ndarray, np.ndarray, BadVideos]:
        bad = BadVideos(videos, max_share=1.0)
        batches = run_batches(
            step,
            placed,
            videos,
            sampler=clip_sampler(config),
            batch_size=8 * jax.device_count() if batch_size is None else batch_size,
            mesh=mesh,
            threads=config.data.threads or None,
            bad=bad,
        )
        found = join_predictions(batches)
        if not len(found.ids):
            raise UserError(f"{videos.name}: {bad}")
        assert videos.labels is not None
        return found.values, videos.labels[found.ids], bad

    with jax.set_mesh(mesh):
        step, placed = jit_predict(features, params, mesh), place_params(params, mesh)
        bank, bank_labels, bank_bad = collect(train)
        queries, labels, bad = collect(held_out)
    votes = metrics.neighbour_votes(bank, bank_labels, queries, ks=ks, temperature=temperature)
    unread = ((train.name, bank_bad), (held_out.name, bad))
    return Neighbours(
        top1={k: metrics.top(votes[k], labels, k=1) for k in ks},
        protocol=f"1 clip of each video, cosine, temperature {temperature:g}, "
        f"{len(labels):,} of {len(held_out):,} videos against {len(bank):,} of {len(train):,}",
        unreadable={**bank_bad.reasons, **bad.reasons},
        notes=[f"{name}: {videos}" for name, videos in unread if len(videos)],
    )
