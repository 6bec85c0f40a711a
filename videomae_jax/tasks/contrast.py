"""The contrastive task, MoCo v3 on video: find the other clip of a video among those of a batch.

A reconstruction: the recipe of the paper's comparison was never released (`configs/contrast.py`).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from videomae_jax.augment.views import augment_view
from videomae_jax.data.videos import Videos
from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.contrast import (
    MoCo,
    contrast_sums,
    feature_spread,
    init_moco,
    pair_views,
)
from videomae_jax.models.tokens import patchify
from videomae_jax.tasks import pretrain
from videomae_jax.tasks.build import (
    Geometry,
    canvas_size,
    canvas_text,
    clip_geometry,
    compute_line,
    encoder_fields,
    fit_canvas,
    flops_line,
    patches_text,
    positions_line,
    row_keys,
)
from videomae_jax.tasks.classify import check_source
from videomae_jax.tasks.pretrain import EVAL_SEED, eval_sampler
from videomae_jax.tasks.task import Params, Task

if TYPE_CHECKING:  # it imports PyAV, which is only needed where videos are read
    from videomae_jax.data.samplers import ClipSampler

VIEWS = 2  # of each video
FEW = 64  # videos; with fewer in a batch, the other clip is soon found


def build_model(config: ConfigDict) -> MoCo:
    """Return the model of `config.model`, executed as `config.run` specifies."""
    head = config.model.head
    return MoCo(hidden=head.hidden, dim=head.dim, **encoder_fields(config))


def prepare(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Check the batch, and the labels as `pretrain.prepare` does.

    Raises UserError for batches that have nothing to compare.
    """
    if config.batch_size < 2:
        raise UserError(
            f"batch_size {config.batch_size}: the clips of a video are compared with those of the "
            f"others in the batch, use 2 or more, better {FEW}"
        )
    if config.repeats != VIEWS:
        raise UserError(f"repeats {config.repeats}: the views of a video are {VIEWS} clips, use 2")
    if config.accumulation > 1:
        raise UserError(
            f"accumulation {config.accumulation}: the loss compares all videos of a step; use "
            f"--config.accumulation=1 --config.chunks={config.accumulation}, exact and as small"
        )
    return pretrain.prepare(fit_canvas(config, train), train, held_out)


def build_task(config: ConfigDict) -> Task:
    """Return the contrastive task of a locked config.

    The clips at rows 2 i and 2 i + 1 are of one video. In training, the keys are those of the
    moving average of the parameters, `average`. In evaluation they are those of the same
    parameters, and both views are of the one clip of a video, differently augmented.
    """
    model = build_model(config)
    clip = config.clip
    check_source(clip)
    geometry = clip_geometry(clip, model)
    forward_flops, train_flops = flops.contrast_flops(
        model.encoder,
        tokens=geometry.tokens,
        values=geometry.values,
        hidden=model.hidden,
        dim=model.dim,
    )
    augment = jax.vmap(
        functools.partial(augment_view, height=clip.height, width=clip.width, **config.augment)
    )
    in_parts = functools.partial(map_chunks, chunks=config.chunks)
    # The backward pass encodes several chunks again: the activations of one are kept at a time.
    checkpoint: Callable = jax.checkpoint if config.chunks > 1 else lambda function: function

    def encode(params, video):
        patches = patchify(video, model.patch)
        return model.apply({"params": params}, patches, geometry.grid, method="features")

    def heads(params, features, weights=None, *, method) -> Any:
        return model.apply({"params": params}, features, weights, method=method)

    def sums(queries, keys, features, weights=None):
        found = contrast_sums(queries, keys, temperature=config.temperature, weights=weights)
        spread = feature_spread(features, weights)
        return {**found, "spread": jnp.full_like(found["count"], spread)}

    def train_sums(params, batch, key, *, average):
        if config.freeze_patches:  # saves its backward pass; `freeze_patches` stops weight decay
            params = map_patches(jax.lax.stop_gradient, params)
        rows = batch["row"]
        keys = row_keys(key, rows)
        video = in_parts(augment, keys, batch["video"], batch.get("size"), rows % VIEWS)
        features = pair_views(in_parts(checkpoint(functools.partial(encode, params)), video))
        targets = pair_views(in_parts(functools.partial(encode, average), video))
        found = sums(
            heads(params, features, method="queries"),
            heads(average, targets, method="keys"),
            features,
        )
        return jax.tree.map(jnp.sum, found)

    def eval_sums(params, batch):
        seeds = row_keys(jax.random.key(EVAL_SEED), batch["id"])
        keys = jax.vmap(jax.random.split)(seeds).reshape(-1)
        views = jnp.arange(len(keys)) % VIEWS
        video = in_parts(augment, keys, batch["video"].repeat(VIEWS, axis=0), None, views)
        features = pair_views(in_parts(functools.partial(encode, params), video))
        weights = batch["valid"].astype(jnp.float32)
        targets = heads(params, features, weights, method="keys")
        found = sums(heads(params, features, weights, method="queries"), targets, features, weights)
        return {**found, "candidates": jnp.full_like(weights, weights.sum())}

    return Task(
        init=jax.jit(lambda key: init_moco(model, key, geometry.grid)),
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=summarize,
        pictures=lambda params, batch: {},
        samplers=lambda: (train_sampler(config), eval_sampler(config)),
        check_clips=functools.partial(check_clips, chunks=config.chunks),
        train_flops=train_flops,
        knn=config.knn if config.knn.k else None,
        wrap_optimizer=functools.partial(freeze_patches, frozen=config.freeze_patches),
        average_decay=functools.partial(momentum, first=config.ema_decay),
        summary=_summary(config, model, geometry)
        | {"FLOPs": flops_line(forward_flops, train_flops)},
    )


def _summary(config: ConfigDict, model: MoCo, geometry: Geometry) -> dict[str, str]:
    """Return the lines of the start banner except FLOPs."""
    clip, change, videos = config.clip, config.augment, config.batch_size
    blur, solarize = (" and ".join(f"{p:g}" for p in c) for c in (change.blur, change.solarize))
    chance = 4 * config.temperature * math.log(videos)
    few = f"; few videos: {FEW} or more are better" if videos < FEW else ""
    return {
        "recipe": "a reconstruction: the authors' video recipe was never released",
        "clip": f"{clip.frames} frames, stride {clip.stride}, {clip.height} x {clip.width}, "
        f"{patches_text(geometry, model)}",
        "positions": positions_line(geometry.grid, model),
        "augment": f"crops from {change.min_area:g} of the image, "
        f"flip {'on' if change.flip else 'off'}, jitter {change.jitter:g}, "
        f"grey {change.grey:g}, blur {blur}, solarize {solarize}; {canvas_text(clip)}",
        "patches": "frozen" if config.freeze_patches else "trained",
        "heads": f"projector of 3 layers, predictor of 2, {model.hidden} wide, to {model.dim}",
        "keys": f"by averaged weights, decay {config.ema_decay:g} rising to 1",
        "loss": f"cross-entropy over {videos} videos at temperature {config.temperature:g}, "
        f"{chance:.3f} at chance{few}",
        "compute": f"{compute_line(model.run)}, {config.chunks} chunks",
    }


def map_chunks(function: Callable[..., jax.Array], *rows: Any, chunks: int) -> jax.Array:
    """Apply a function of arrays of rows to one chunk of the rows after another.

    The result is that of all rows at once. Every chunks-th row makes a chunk, so that each device
    has some of every chunk and no row moves between devices.
    """
    if chunks == 1:
        return function(*rows)
    parts = jax.tree.map(lambda x: x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1), rows)
    found = jax.lax.map(lambda part: function(*part), parts)
    return found.swapaxes(0, 1).reshape(-1, *found.shape[2:])


def check_clips(clips: int, *, chunks: int) -> None:
    """Raise UserError unless videos and chunks divide the clips that a device has in a step."""
    if clips % VIEWS:
        raise UserError(
            f"a device has {clips} clips of a step, and a video gives {VIEWS}: use a batch_size "
            "that the number of devices divides"
        )
    if clips % chunks:
        legal = [n for n in range(1, clips + 1) if clips % n == 0]
        near = min(legal, key=lambda n: abs(n - chunks))
        raise UserError(
            f"chunks {chunks} do not divide the {clips} clips of a device: use "
            f"--config.chunks={near}"
        )


def momentum(steps: int, *, first: float) -> optax.Schedule:
    """Return a function step -> m, the weight of the old average before that step.

    m rises from `first` to 1 at the end of the run as a half cosine (the released code of MoCo
    v3). The average of the first step is that of the initial weights.
    """

    def decay(step):
        progress = jnp.asarray(step, jnp.float32) / steps
        return 1 - (1 - first) * 0.5 * (1 + jnp.cos(math.pi * progress))

    return decay


def map_patches(function: Callable[[jax.Array], jax.Array], params: Params) -> Params:
    """Apply a function to the leaves of the patch embedding; the others stay."""

    def choose(path, leaf):
        return function(leaf) if path_name(path).startswith("encoder/embed/") else leaf

    return jax.tree_util.tree_map_with_path(choose, params)


def freeze_patches(
    optimizer: optax.GradientTransformation, *, frozen: bool
) -> optax.GradientTransformation:
    """Return an optimizer that does not change the patch embedding, not even by weight decay."""

    def stop(updates, _):
        return map_patches(jnp.zeros_like, updates) if frozen else updates

    return optax.chain(optimizer, optax.stateless(stop))


def train_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of training clips of `config.clip`, at most of their source size."""
    from videomae_jax.data.samplers import ViewPairSampler

    clip = config.clip
    height, width = canvas_size(clip)
    return ViewPairSampler(
        frames=clip.frames,
        stride=clip.stride,
        height=height,
        width=width,
        channels=len(config.model.mean),
        train=True,
        canvas=(height, width),
    )


def summarize(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the mean loss and the other means.

    match: how often the other clip of the video is the nearest. positive, negative: the mean
    cosine with it and with those of other videos. spread: see `models.contrast.feature_spread`.
    In evaluation also candidates: from how many videos of a batch the clip is chosen.
    """
    count = sums["count"]
    means = {name: value / count for name, value in sums.items() if name not in ("error", "count")}
    return {"loss": sums["error"] / count, **means}
