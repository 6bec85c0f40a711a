"""Make the network of a trained model and compute its outputs."""

from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.models.attention import lacks
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.contrast import MoCo
from videomae_jax.models.detector import VideoDetector
from videomae_jax.models.mae import VideoMAE, reconstruction_sums
from videomae_jax.models.masking import mask_from_bool
from videomae_jax.models.tokens import Triple, patchify, video_grid
from videomae_jax.models.vit import LayerNorm
from videomae_jax.tasks import TASKS
from videomae_jax.tasks.build import make_execution, platform_in_use
from videomae_jax.tasks.task import Params

if TYPE_CHECKING:  # else PyAV would be imported, which a model of arrays does not need
    from videomae_jax.data.samplers import ClipSampler

Network = VideoMAE | VideoClassifier | VideoDetector | MoCo


def build_network(
    config: ConfigDict, *, dtype: str = "auto", attention: str = "auto", merge_tokens: int = 0
) -> Network:
    """Return the network of a checkpoint's config, for inference.

    dtype, attention: as in `config.run`, which is ignored, so that a checkpoint from a GPU runs
    on a laptop; an attention that cannot run here becomes "auto". An encoder alone is a VideoMAE
    for which `predict` does not work. merge_tokens: see `models.merging`; raises UserError if the
    model is not a classifier.
    """
    if merge_tokens and config.task != "classify":
        raise UserError(
            f"token merging is for fine-tuned classifiers, this is a model of task {config.task}: "
            "leave out --merge-tokens"
        )
    config = config.copy_and_resolve_references()
    config.run.update(dtype=dtype, attention="auto", remat="none")
    run = make_execution(config)
    if not lacks(attention, platform=platform_in_use(), dtype=run.dtype):
        config.run.attention = attention
    network = TASKS[config.task].build_model(config)
    return network.clone(merge_tokens=merge_tokens) if merge_tokens else network


def merging_facts(network: Network) -> dict[str, int]:
    """Return the setting of token merging for `resumable.Parts`, nothing without merging."""
    return {"merge-tokens": network.merge_tokens} if network.merge_tokens else {}


def check_classifier(config: ConfigDict, source: str) -> None:
    """Raise UserError if a model does not classify; `source` is its name in the message."""
    if config.task == "detect":
        raise UserError(
            f"{source} is a detector, it scores boxes and not videos: use vm.evaluate_detector, "
            "Model.detect, or the commands evaluate and predict"
        )
    if config.task != "classify":
        raise UserError(f"{source} was trained to {config.task}, it has no classes: fine-tune it")


def check_detector(config: ConfigDict, source: str) -> None:
    """Raise UserError if a model is not a detector; `source` is its name in the message."""
    if config.task != "detect":
        raise UserError(
            f"{source} was trained to {config.task}, it takes no boxes: train a detector, see "
            "docs/detection.md"
        )


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the class names of a model, "0", "1", ... if it has none."""
    return tuple(config.data.class_names) or tuple(map(str, range(config.model.classes)))


def untrained_params(config: ConfigDict) -> Params:
    """Return random parameters, as at the start of a run of this config, as a baseline."""
    config = config.copy_and_resolve_references()
    config.run.update(dtype="auto", attention="auto")
    return TASKS[config.task].build_task(config).init(jax.random.key(config.seed))


def clip_sampler(config: ConfigDict) -> "ClipSampler":
    """Return the sampler of evaluation during training: one clip of each video."""
    return TASKS[config.task].eval_sampler(config)


def outputs(network: Network, params: Params, video: jax.Array) -> dict[str, jax.Array]:
    """Return the tokens, features and logits of uint8 [B, F, H, W, C], all float32.

    "tokens" [B, N, D]: all tokens, none masked, after the encoder's final norm if it has one.
    "steps" [B, T, D]: the mean token of each time step.
    "features" [B, D]: the mean token; after the norm before the head, if the model has this norm.
    "logits" [B, classes]: for a classifier only. Under `jit`, unused outputs are not computed.
    A network that merges tokens has neither "tokens" nor "steps".
    """
    grid = video_grid(video, network.patch)
    patches = patchify(video, network.patch)
    if isinstance(network, VideoClassifier):

        def classify_tokens(classifier):
            tokens = classifier.tokens(patches, grid).astype("float32")
            features = classifier.fc_norm(tokens.mean(axis=1))
            pooled = {"features": features, "logits": classifier.head(features)}
            if network.merge_tokens:
                return pooled
            return pooled | {"tokens": tokens, "steps": step_means(tokens, grid)}

        found = network.apply({"params": params}, method=classify_tokens)
        return cast(dict[str, jax.Array], found)

    encoder = network.build_encoder(cubic_positions=isinstance(network, VideoDetector))
    tokens = cast(jax.Array, encoder.apply({"params": params["encoder"]}, patches, grid))
    tokens = tokens.astype("float32")
    steps = step_means(tokens, grid)
    features = tokens.mean(axis=1)
    if "fc_norm" in params:
        norm = LayerNorm(jnp.float32)
        features = cast(jax.Array, norm.apply({"params": params["fc_norm"]}, features))
    return {"tokens": tokens, "steps": steps, "features": features}


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
    """Predict the masked patches of videos, uint8 [B, F, H, W, C].

    hidden: bool [B, S], the patches masked in every time step. masked: their number M in each
    row. normalized: whether the targets are normalized per patch. Returns the prediction,
    float32 [B, T, M, P], and the loss, a float32 scalar.
    """
    grid = video_grid(video, network.patch)
    patches = patchify(video, network.patch)
    mask = mask_from_bool(hidden, masked=masked)
    prediction = cast(jax.Array, network.apply({"params": params}, patches, mask, grid))
    sums = reconstruction_sums(
        prediction, patches, mask, channels=len(network.mean), normalized=normalized
    )
    loss = sums["error"].sum() / sums["count"].sum()
    return prediction.reshape(video.shape[0], grid[0], masked, -1), loss
