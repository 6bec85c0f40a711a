"""Export a model as one ONNX file, for ONNX Runtime and other engines."""

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.interop.serving import probabilities_of, serving_function
from videomae_jax.tasks.task import Params


def write_onnx(path: Path, params: Params, config: ConfigDict, labels: Sequence[str]) -> None:
    """Write the function video -> features[, logits] of `serving_function` with its weights.

    video: uint8 [B, F, H, W, C] of any B; the other axes are those of the config. The metadata of
    the file have the labels as JSON, and the function that makes probabilities of logits. Raises
    UserError without jax2onnx, and as `serving_function` does.
    """
    serve = serving_function(params, config, form="an ONNX file")
    if importlib.util.find_spec("jax2onnx") is None:
        raise UserError("an ONNX file needs jax2onnx: pip install 'videomae_jax[onnx]'")
    clip = config.clip
    sides = (clip.frames, clip.height, clip.width, len(config.model.mean))
    names = list(jax.eval_shape(serve, jax.ShapeDtypeStruct((1, *sides), np.uint8)))

    import onnx
    from jax2onnx import to_onnx

    # It warns of each inner shape that it does not write into the file.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    model = to_onnx(
        serve,
        [jax.ShapeDtypeStruct(("B", *sides), np.uint8)],
        model_name="videomae",
        input_names=["video"],
        output_names=names,
    )
    facts = {"labels": json.dumps(list(labels))}
    if "logits" in names:
        facts["probabilities"] = probabilities_of(config)
    onnx.helper.set_model_props(model, facts)
    path.write_bytes(model.SerializeToString())
