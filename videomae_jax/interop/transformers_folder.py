"""Read and write the JSON files of a transformers folder: config and preprocessor.

Folders of image models are read too, also those of timm on the hub.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from videomae_jax.errors import UserError
from videomae_jax.interop.safetensors_file import read_json
from videomae_jax.models.tokens import Triple
from videomae_jax.models.vit import Size

MODEL_TYPES = ("videomae", "vit", "vit_mae")
TIMM = "pretrained_cfg"  # a key of config.json in folders of timm, which have no model_type
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-6  # of every LayerNorm of the reference; transformers' default is 1e-12


class FolderConfig(NamedTuple):
    """What the tensors of a file do not show; the defaults are those of the reference."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    frames: int = 16
    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    normalized_targets: bool = True
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has a config.json of a model that can be read."""
    path = folder / CONFIG
    return path.is_file() and _is_known(read_json(path))


def _is_known(config: dict) -> bool:
    return config.get("model_type") in MODEL_TYPES or isinstance(config.get(TIMM), dict)


def read_folder_config(folder: Path) -> FolderConfig:
    """Read config.json and preprocessor_config.json; raise UserError if they are not valid."""
    path = folder / CONFIG
    notes = []
    config = read_json(path)
    if not _is_known(config):
        raise UserError(f"{path} is of a {config.get('model_type')!r}, not of a 'videomae'")
    if config.get("model_type") not in MODEL_TYPES:
        return _read_timm(path, config[TIMM])
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path} has hidden_act {config['hidden_act']!r}: only 'gelu' is supported")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if epsilon != EPSILON:
        notes.append(f"config.json has layer_norm_eps {epsilon}; the reference's 1e-06 is used")

    def count(key: str, default: int) -> int:
        value = config.get(key, default)
        if type(value) is not int or value < 1:
            raise UserError(f"{path} has {key} {value!r}: it must be a positive integer")
        return value

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if (folder / PROCESSOR).is_file():
        processor = read_json(folder / PROCESSOR)
        mean, std = processor.get("image_mean", mean), processor.get("image_std", std)
        _check_numbers(folder / PROCESSOR, image_mean=mean, image_std=std)
    return FolderConfig(
        # transformers does not write the values that equal its defaults, which are these.
        num_heads=count("num_attention_heads", 12),
        decoder_num_heads=count("decoder_num_attention_heads", 6),
        frames=count("num_frames", 16),
        image_size=count("image_size", 224),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        normalized_targets=bool(config.get("norm_pix_loss", True)),
        labels=_labels(config.get("id2label")),
        notes=tuple(notes),
    )


def _read_timm(path: Path, config: dict) -> FolderConfig:
    """Read the config of an image model of timm, which has neither its size nor its heads."""
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    size = config.get("input_size", (3, 224, 224))
    _check_numbers(path, mean=mean, std=std, input_size=size)
    return FolderConfig(
        mean=tuple(map(float, mean)), std=tuple(map(float, std)), image_size=int(size[-1])
    )


def _check_numbers(path: Path, **given: Any) -> None:
    for name, values in given.items():
        numbers = isinstance(values, list | tuple) and all(type(x) in (int, float) for x in values)
        if not values or not numbers:
            raise UserError(f"{path} has {name} {values!r}: it must be a list of numbers")


def _labels(names: Any) -> tuple[str, ...]:
    """Return the class names in order; none if they are missing, or only placeholders."""
    if not isinstance(names, dict) or set(names) != set(map(str, range(len(names)))):
        return ()
    labels = tuple(str(names[str(index)]) for index in range(len(names)))
    placeholders = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
    return () if placeholders else labels


def write_folder_config(
    folder: Path,
    *,
    folder_config: FolderConfig,
    encoder: Size,
    decoder: Size | None,
    patch: Triple,
    classes: int,
    final_norm: bool,
) -> None:
    """Write config.json and preprocessor_config.json for the weights in `folder`.

    folder_config: its heads are ignored, those of encoder and decoder are written. classes: 0
    without a head. final_norm: whether the encoder ends in a norm of its own, instead of a norm
    after pooling.
    """
    tubelet, side, width = patch
    if side != width:
        raise UserError(f"transformers has square patches only, not {side} x {width}")
    head = "VideoClassification" if classes else "PreTraining" if decoder else ""
    config = dict(
        architectures=[f"VideoMAEFor{head}" if head else "VideoMAEModel"],
        model_type="videomae",
        image_size=folder_config.image_size,
        num_frames=folder_config.frames,
        num_channels=len(folder_config.mean),
        patch_size=side,
        tubelet_size=tubelet,
        **_describe(encoder, ""),
        **(_describe(decoder, "decoder_") if decoder else {}),
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.02,
        layer_norm_eps=EPSILON,
        qv_bias=True,
        # Pooling replaces the norm of the encoder: with True a pre-trained model would silently
        # lose it.
        use_mean_pooling=not final_norm,
        norm_pix_loss=folder_config.normalized_targets,
    )
    if classes:
        labels = folder_config.labels or [f"LABEL_{index}" for index in range(classes)]
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    processor = dict(
        image_processor_type="VideoMAEImageProcessor",
        do_resize=True,
        size=dict(shortest_edge=folder_config.image_size),
        resample=2,  # bilinear
        do_center_crop=True,
        crop_size=dict(height=folder_config.image_size, width=folder_config.image_size),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        # By default transformers uses 0.5 for all.
        image_mean=folder_config.mean,
        image_std=folder_config.std,
    )
    for name, content in ((CONFIG, config), (PROCESSOR, processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _describe(size: Size, prefix: str) -> dict[str, int]:
    return {
        f"{prefix}hidden_size": size.width,
        f"{prefix}num_hidden_layers": size.depth,
        f"{prefix}num_attention_heads": size.heads,
        f"{prefix}intermediate_size": size.mlp_width,
    }
