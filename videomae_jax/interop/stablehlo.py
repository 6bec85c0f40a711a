"""Export a model as one StableHLO function that runs without this package."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.inference.network import build_network, outputs
from videomae_jax.tasks.task import Params

FUNCTION, SIGNATURE = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
MAX_WEIGHTS = 2**31 - 2**24  # bytes; the offsets inside a serialized function are 32 bits


def write_stablehlo(
    folder: Path, params: Params, config: ConfigDict, labels: Sequence[str]
) -> None:
    """Write the function video -> {"features"[, "logits"]}, and its signature as JSON.

    video: uint8 [B, F, H, W, C] of any B; the other axes are those of the config. The function
    contains the weights and the normalization of pixels. It computes in float32, with attention
    as plain matrix products, so that it runs on every platform in `PLATFORMS`. Read it with
    `jax.export.deserialize`. Raises UserError for weights beyond the 2 GB that a serialized
    function can hold.
    """
    params = jax.tree.map(np.asarray, params)
    # Of a pre-trained model, only the encoder.
    params = {name: params[name] for name in ("encoder", "fc_norm", "head") if name in params}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > MAX_WEIGHTS:
        raise UserError(
            f"the weights are {size / 1e9:.2f} GB, a StableHLO file holds at most "
            f"{MAX_WEIGHTS / 1e9:.2f} GB: use a smaller model, or --to hf"
        )
    network = build_network(config, dtype="float32", attention="xla")

    def serve(video):
        made = outputs(network, params, video)
        return {name: made[name] for name in ("features", "logits") if name in made}

    clip = config.clip
    (batch,) = jax.export.symbolic_shape("B")
    shape = (batch, clip.frames, clip.height, clip.width, len(network.mean))
    exported = jax.export.export(jax.jit(serve), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, np.uint8)
    )

    def describe(array):
        sides = [side if isinstance(side, int) else str(side) for side in array.shape]
        return {"dtype": array.dtype.name, "shape": sides}

    made = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    signature = {
        "input": {"video": describe(exported.in_avals[0])},
        "outputs": {name: describe(array) for name, array in made.items()},
        "labels": tuple(labels),
        "platforms": exported.platforms,
        "jax": jax.__version__,
    }
    if "logits" in made:  # the function that makes probabilities of them
        signature["probabilities"] = "sigmoid" if config.model.multi_label else "softmax"
    folder.mkdir()
    (folder / FUNCTION).write_bytes(exported.serialize())
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n")
