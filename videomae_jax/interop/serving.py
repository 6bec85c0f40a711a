"""The function from a video to features and logits that StableHLO and ONNX files hold."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.inference.network import build_network, outputs
from videomae_jax.tasks.task import Params

MAX_WEIGHTS = 2**31 - 2**24  # bytes; in both formats, the offsets inside a file are 32 bits

Serve = Callable[[jax.Array], dict[str, jax.Array]]


def serving_function(params: Params, config: ConfigDict, *, form: str) -> Serve:
    """Return the function video -> {"features"[, "logits"]}, which contains the weights.

    video: uint8 [B, F, H, W, C]. It normalizes the pixels and computes in float32, with attention
    as plain matrix products, so that it runs everywhere. form: the format's name, for messages.
    Raises UserError for a detector, and for weights beyond the 2 GB of such a file.
    """
    if config.task == "detect":
        raise UserError(
            f"{form} holds a function of videos of one size and no boxes, which an action detector "
            "needs: use native, mcg or safetensors"
        )
    params = jax.tree.map(np.asarray, params)
    # Of a pre-trained model, only the encoder.
    params = {name: params[name] for name in ("encoder", "fc_norm", "head") if name in params}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > MAX_WEIGHTS:
        raise UserError(
            f"the weights are {size / 1e9:.2f} GB, {form} holds at most "
            f"{MAX_WEIGHTS / 1e9:.2f} GB: use a smaller model, or --to hf"
        )
    network = build_network(config, dtype="float32", attention="xla")

    def serve(video: jax.Array) -> dict[str, jax.Array]:
        made = outputs(network, params, video)
        return {name: made[name] for name in ("features", "logits") if name in made}

    return serve


def probabilities_of(config: ConfigDict) -> str:
    """Return the name of the function that makes probabilities of the logits."""
    return "sigmoid" if config.model.multi_label else "softmax"
