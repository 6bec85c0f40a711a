"""Inference with a trained model. The mask is an input, so nothing is random."""

from collections.abc import Callable
from typing import cast

import jax
from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE, reconstruction_sums
from videomae_jax.models.masking import mask_from_bool
from videomae_jax.models.tokens import Triple, patch_grid, patchify
from videomae_jax.tasks import TASKS
from videomae_jax.tasks.task import Params

Network = VideoMAE | VideoClassifier


def build_network(config: ConfigDict, *, dtype: str = "auto", attention: str = "auto") -> Network:
    """Make the model of a checkpoint's config, to be used and not trained.

    How the training was run is not asked: a checkpoint from a GPU opens on a laptop. An
    encoder alone is a VideoMAE of which `predict` can do nothing.
    """
    config = config.copy_and_resolve_references()
    config.run.update(dtype=dtype, attention=attention, remat="none")
    return TASKS[config.task].build_model(config)


def check_classifier(config: ConfigDict, source: str) -> None:
    """Raise UserError for a model without classes; `source` is its name in the message."""
    if config.task != "classify":
        raise UserError(f"{source} was trained to {config.task}, it knows no classes: fine-tune it")


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the classes of a classifier, "0", "1", ... if it has none."""
    return tuple(config.data.class_names) or tuple(map(str, range(config.model.classes)))


def untrained_params(config: ConfigDict) -> Params:
    """Return random weights such as a run of a checkpoint's config begins with, to compare."""
    config = config.copy_and_resolve_references()
    config.run.update(dtype="auto", attention="auto")
    return TASKS[config.task].build_task(config).init(jax.random.key(config.seed))


def clip_sampler(config: ConfigDict) -> Callable:
    """Return the sampler of the one clip of a video that evaluation in training looks at."""
    return TASKS[config.task].eval_sampler(config)


def outputs(network: Network, params: Params, video: jax.Array) -> dict[str, jax.Array]:
    """Return the tokens, features and logits of uint8 [B, F, H, W, C], all float32.

    "tokens" [B, N, D], no patch masked: after the encoder's final norm, if it has one.
    "steps" [B, T, D]: the mean token of each time step.
    "features" [B, D]: the mean token, of a classifier normed as its head sees it. "logits"
    [B, classes]: of a classifier only. Under `jit`, what is not used is not computed.
    """
    grid = patch_grid(clip_size(video), network.patch)
    patches = patchify(video, network.patch)
    if isinstance(network, VideoClassifier):

        def classify_tokens(classifier):
            tokens = classifier.tokens(patches, grid).astype("float32")
            features = classifier.fc_norm(tokens.mean(axis=1))
            return {
                "tokens": tokens,
                "steps": step_means(tokens, grid),
                "features": features,
                "logits": classifier.head(features),
            }

        found = network.apply({"params": params}, method=classify_tokens)
        return cast(dict[str, jax.Array], found)

    # A transformers model made for pooling has no final norm.
    encoder = network.build_encoder(final_norm="norm" in params["encoder"])
    tokens = cast(jax.Array, encoder.apply({"params": params["encoder"]}, patches, grid))
    tokens = tokens.astype("float32")
    steps = step_means(tokens, grid)
    return {"tokens": tokens, "steps": steps, "features": tokens.mean(axis=1)}


def clip_size(video: jax.Array) -> Triple:
    """Return (F, H, W) of a video [B, F, H, W, C]."""
    _, frames, height, width, _ = video.shape
    return frames, height, width


def step_means(tokens: jax.Array, grid: Triple) -> jax.Array:
    """Return the mean of the tokens [B, T * S, D] of each time step: [B, T, D]."""
    return tokens.reshape(tokens.shape[0], grid[0], -1, tokens.shape[-1]).mean(axis=2)


def predict(
    network: VideoMAE,
    params: Params,
    video: jax.Array,
    hidden: jax.Array,
    *,
    masked: int,
    normalized: bool,
) -> tuple[jax.Array, jax.Array]:
    """Reconstruct the tubes of uint8 [B, F, H, W, C] that bool [B, S] hides.

    masked: how many each row of `hidden` hides, M. normalized: the targets are, per patch.
    Returns the prediction, float32 [B, T, M, P], and the loss, a float32 scalar.
    """
    grid = patch_grid(clip_size(video), network.patch)
    patches = patchify(video, network.patch)
    mask = mask_from_bool(hidden, masked=masked)
    prediction = cast(jax.Array, network.apply({"params": params}, patches, mask, grid))
    sums = reconstruction_sums(
        prediction, patches, mask, channels=len(network.mean), normalized=normalized
    )
    loss = sums["error"].sum() / sums["count"].sum()
    return prediction.reshape(video.shape[0], grid[0], masked, -1), loss
