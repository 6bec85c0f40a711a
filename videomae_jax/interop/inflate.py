"""Turn image models into video encoders: which tensors are kept, inflated and left out.

The input is a ViT or MAE with the names of timm (those of MAE are the same) or of transformers.
The result has the names of a video encoder, for the strict conversion of `convert`, which refuses
tensors that are not handled here, such as LayerScale or registers.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from videomae_jax.errors import UserError

INFLATIONS = ("mean", "centre")
TUBELET = 2  # frames, as in every released video model

# The name of the patch embedding in timm and in transformers, and the prefix of all names in a
# video encoder of that dialect.
PROJECTIONS = {
    "patch_embed.proj.weight": "encoder.",
    "embeddings.patch_embeddings.projection.weight": "videomae.",
}
WRAPPERS = re.compile(r"^((_orig_mod|module|backbone|model|vit)\.)+")
CLASS_TOKEN = re.compile(r"^(embeddings\.)?cls_token$")
POSITIONS = re.compile(r"^(pos_embed|embeddings\.position_embeddings)$")
KEY_BIAS = re.compile(r"\.attention\.key\.bias$")
FUSED_BIAS = re.compile(r"\.attn\.qkv\.bias$")
# Decoders of MAE, and heads of classifiers; fc_norm replaces the norm in models that pool.
OF_IMAGES = re.compile(
    r"^(decoder(_embed|_pos_embed|_blocks|_norm|_pred)?\.|decoder_pos_embed$"
    r"|(embeddings\.)?mask_token$|(head|fc_norm|pre_logits|classifier|pooler)\.)"
)


def is_image_model(tensors: Mapping[str, Any]) -> bool:
    """Whether the patch embedding has no time axis: four axes, not five."""
    return _prefix(tensors) is not None


def video_from_image(
    tensors: Mapping[str, Any], *, inflate: str = INFLATIONS[0], tubelet: int = TUBELET
) -> tuple[dict[str, Any], list[str]]:
    """Convert the tensors of an image model to those of a video encoder: (tensors, notes).

    inflate: how the patch embedding [D, C, h, w] becomes [D, C, t = tubelet, h, w]. "mean":
    every frame has 1/t of the weights (I3D, 1705.07750); "centre": frame t // 2 has all of the
    weights, the others zero (ViViT, 2103.15691). With either, a still video has the embedding of
    the image.
    """
    if inflate not in INFLATIONS:
        raise UserError(f"inflation {inflate!r} is unknown: use {' or '.join(INFLATIONS)}")
    if tubelet < 1:
        raise UserError(f"a tubelet of {tubelet} frames: use 1 or more, such as {TUBELET}")
    prefix = _prefix(tensors)
    video: dict[str, Any] = {}
    left_out, notes = [], []
    key_biases = 0
    for key, tensor in tensors.items():
        short = WRAPPERS.sub("", key)
        name = f"{prefix}{short}"
        if name in video:
            raise UserError(f"the image model holds {short} twice, the second time as {key}")
        if short in PROJECTIONS and len(tensor.shape) == 4:
            video[name] = inflate_kernel(np.asarray(tensor), inflate, tubelet)
            shapes = f"{key} {tuple(tensor.shape)} became {video[name].shape}"
            how = {
                "mean": f"each of the {tubelet} frames has 1/{tubelet} of the weights",
                "centre": f"frame {tubelet // 2} of 0 to {tubelet - 1} has the weights",
            }[inflate]
            notes.append(f"{shapes}: {how}; a still video has the embedding of the image")
        elif CLASS_TOKEN.search(short):
            notes.append(f"{key} is left out: a video encoder has no class token")
        elif POSITIONS.search(short):
            notes.append(
                f"{key} {tuple(tensor.shape)} is left out: positions here are the fixed "
                "sine-cosine table over the tokens of a clip; train before using its features"
            )
        elif KEY_BIAS.search(short):
            key_biases += 1
        elif FUSED_BIAS.search(short) and len(tensor.shape) == 1 and tensor.shape[0] % 3 == 0:
            query, _, value = np.split(np.asarray(tensor), 3)
            root = name.removesuffix("qkv.bias")
            video |= {f"{root}q_bias": query, f"{root}v_bias": value}
            key_biases += 1
        elif OF_IMAGES.search(short):
            left_out.append(short.split(".")[0])
        else:
            video[name] = tensor
    if key_biases:
        notes.append(
            f"{key_biases} biases on keys are left out, exactly: each adds one number to all "
            "scores of a query, and the softmax does not change"
        )
    if left_out:
        notes.append(f"left out, for images only: {', '.join(sorted(set(left_out)))}")
    return video, notes


def inflate_kernel(kernel: np.ndarray, inflate: str, tubelet: int) -> np.ndarray:
    """Add a time axis to [D, C, h, w]: [D, C, tubelet, h, w], whose sum over time is the same."""
    video = np.zeros([*kernel.shape[:2], tubelet, *kernel.shape[2:]], kernel.dtype)
    if inflate == "mean":
        video[:] = kernel[:, :, None] / np.asarray(tubelet, kernel.dtype)
    else:
        video[:, :, tubelet // 2] = kernel
    return video


def change_channels(kernel: np.ndarray, *, old: int, new: int) -> np.ndarray:
    """Turn our embedding matrix [P, D] for `old` channels into one for `new`.

    Every new channel has the mean of the old weights, times old / new: the embedding of normalized
    pixels that are equal in all channels does not change.
    """
    mean = kernel.reshape(-1, old, kernel.shape[-1]).mean(axis=1, keepdims=True)
    return np.repeat(mean * np.float32(old / new), new, axis=1).reshape(-1, kernel.shape[-1])


def _prefix(tensors: Mapping[str, Any]) -> str | None:
    for key, tensor in tensors.items():
        short = WRAPPERS.sub("", key)
        if short in PROJECTIONS and len(tensor.shape) == 4:
            return PROJECTIONS[short]
    return None
