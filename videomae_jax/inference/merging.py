"""How well a model that merges tokens agrees with the same model that does not."""

from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, thin_videos
from videomae_jax.errors import UserError
from videomae_jax.inference.engine import data_mesh, predict_videos
from videomae_jax.inference.network import Network, clip_sampler, outputs
from videomae_jax.tasks.task import Params

VIDEOS = 16  # at most so many are compared


class Agreement(NamedTuple):
    """The comparison of one clip of each of `videos` videos, with and without merging.

    same: the number of videos with the same most probable class. cosine: between the features,
    the mean over the videos.
    """

    videos: int
    same: int
    cosine: float

    def __str__(self) -> str:
        return (
            f"token merging: the same top-1 as without for {self.same} of {self.videos} videos "
            f"(one clip each), cosine of the features {self.cosine:.4f}"
        )


def measure_agreement(
    network: Network, params: Params, config: ConfigDict, videos: Videos
) -> Agreement:
    """Compare a classifier that merges tokens with itself without merging.

    On at most VIDEOS videos, evenly spaced over the list. Raises UserError if none of them can
    be read, or for an impossible number of tokens.
    """
    plain = network.clone(merge_tokens=0)
    some = thin_videos(videos, most=VIDEOS)
    bad = BadVideos(some, max_share=1.0)

    def both(params: Params, video: jax.Array) -> list[dict[str, jax.Array]]:
        return [
            {name: made[name] for name in ("features", "logits")}
            for made in (outputs(model, params, video) for model in (network, plain))
        ]

    mesh = data_mesh(jax.local_devices())
    merged, whole = predict_videos(
        both,
        params,
        some,
        sampler=clip_sampler(config),
        batch_size=mesh.size,
        mesh=mesh,
        threads=None,
        bad=bad,
    ).values
    if not len(merged["logits"]):
        raise UserError(f"nothing to compare the merging on: {bad}")
    same = merged["logits"].argmax(-1) == whole["logits"].argmax(-1)
    norms = [np.linalg.norm(made["features"], axis=-1) for made in (merged, whole)]
    products = (merged["features"] * whole["features"]).sum(-1) / (norms[0] * norms[1])
    return Agreement(len(same), int(same.sum()), float(products.mean()))
