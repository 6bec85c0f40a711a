"""Export a model as one StableHLO function that runs without this package."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.interop.serving import probabilities_of, serving_function
from videomae_jax.tasks.task import Params

FUNCTION, SIGNATURE = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
    folder: Path, params: Params, config: ConfigDict, labels: Sequence[str]
) -> None:
    """Write the function video -> {"features"[, "logits"]}, and its signature as JSON.

    video: uint8 [B, F, H, W, C] of any B; the other axes are those of the config. The function
    contains the weights and the normalization of pixels. It computes in float32, with attention
    as plain matrix products, so that it runs on every platform in `PLATFORMS`. Read it with
    `jax.export.deserialize`. Raises UserError as `serving_function` does.
    """
    serve = serving_function(params, config, form="a StableHLO file")
    clip = config.clip
    (batch,) = jax.export.symbolic_shape("B")
    shape = (batch, clip.frames, clip.height, clip.width, len(config.model.mean))
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
        signature["probabilities"] = probabilities_of(config)
    folder.mkdir()
    (folder / FUNCTION).write_bytes(exported.serialize())
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n")
