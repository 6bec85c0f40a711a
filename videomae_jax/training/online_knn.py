"""Compute the kNN accuracy of an encoder while it is pre-trained."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, thin_videos
from videomae_jax.errors import UserError
from videomae_jax.inference.engine import collect_batches, jit_predict
from videomae_jax.inference.network import build_network, outputs
from videomae_jax.metrics import neighbour_votes, top
from videomae_jax.tasks.task import Params


class OnlineKnn:
    """Classify held-out videos by their nearest training videos, as `videomae knn` does.

    weights: named parameter trees, or their shapes, of which every call gets new values.
    train, held_out: labelled videos. sampler: of evaluation clips. The bank is
    `config.knn.videos` training videos, evenly spaced.
    """

    def __init__(
        self,
        config: ConfigDict,
        weights: dict[str, Params],
        train: Videos,
        held_out: Videos,
        *,
        sampler: ClipSampler,
        mesh: Mesh,
    ):
        network = build_network(config)

        def features(weights, video):
            return {
                name: outputs(network, params, video)["features"]
                for name, params in weights.items()
            }

        self._k = config.knn.k
        self._bank, self._held_out = thin_videos(train, most=config.knn.videos), held_out
        self._step = jit_predict(features, weights, mesh)
        self._options = dict(
            sampler=sampler,
            batch_size=config.batch_size * config.repeats,
            mesh=mesh,
            threads=config.data.threads or None,
        )

    def __call__(
        self, weights: dict[str, Params], *, stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return {name + "knn_top1": fraction of readable videos, 0 to 1}; None if stopped.

        Raises UserError if no held-out video is readable.
        """
        bank, held_out = (
            self._collect(weights, videos, stopped=stopped)
            for videos in (self._bank, self._held_out)
        )
        if stopped():
            return None
        if not len(held_out.ids):
            raise UserError(f"nothing to score with knn: none of {self._held_out.name} is readable")
        bank_labels = np.asarray(self._bank.labels)[bank.ids]
        labels = np.asarray(self._held_out.labels)[held_out.ids]
        found = {}
        for name in weights:
            votes = neighbour_votes(
                bank.values[name], bank_labels, held_out.values[name], ks=(self._k,)
            )
            found[f"{name}knn_top1"] = top(votes[self._k], labels, k=1).value
        return found

    def _collect(self, weights, videos, *, stopped):
        bad = BadVideos(videos, max_share=1.0)
        return collect_batches(
            self._step, weights, videos, bad=bad, stopped=stopped, **self._options
        )
