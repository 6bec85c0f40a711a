"""Read and write the JSON files of a transformers folder: config and preprocessor.

Folders of image models are read too, also those of timm on the hub, and the hub's folders of
VideoMAE V2, whose own Python code is neither needed nor run.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.interop.safetensors_file import read_json
from videomae_jax.models.tokens import Triple
from videomae_jax.models.vit import Size

MODEL_TYPES = ("videomae", "vit", "vit_mae")
# Keys of config.json in folders that have none of these types: of timm, and of V2 on the hub.
TIMM, V2 = "pretrained_cfg", "model_config"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
VIDEO_PROCESSOR, NESTED = "video_preprocessor_config.json", "processor_config.json"
JSON_FILES = (CONFIG, NESTED, VIDEO_PROCESSOR, PROCESSOR)  # all that are read
# The files of a folder that may hold its weights; the first one found is read.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MULTI_LABEL = "multi_label_classification"  # a problem_type: sigmoid loss and probabilities
EPSILON = 1e-6  # of every LayerNorm of the reference; transformers' default is 1e-12


class FolderConfig(NamedTuple):
    """What the tensors of a file do not show; the defaults are those of the reference.

    mean, std: of pixels in [0, 1]. statistics: the file that says them, "" if none does.
    final_norm: whether the encoder ends in a norm; None if no file says it.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    frames: int = 16
    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    statistics: str = ""
    final_norm: bool | None = None
    normalized_targets: bool = True
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    notes: tuple[str, ...] = ()


class _Said(NamedTuple):
    """What one file of a folder says about clips; None: nothing."""

    source: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    image_size: int | None
    frames: int | None


def read_folder_config(
    folder: Path, *, required: bool, frames: int | None = None, image_size: int | None = None
) -> FolderConfig:
    """Read config.json and the preprocessor files beside weights.

    required: whether there must be a config.json. If there need not be one and it is of another
    model, no file of the folder is about these weights. frames, image_size: given by the user;
    they take precedence over the files. Raises UserError for files that are not valid, and for
    two that contradict each other.
    """
    path = folder / CONFIG
    content = read_json(path) if required or path.is_file() else {}
    known = _is_known(content)
    if required and not known:
        raise UserError(f"{path} is of a {content.get('model_type')!r}, not of a 'videomae'")
    config = FolderConfig()
    files: list[_Said] = []
    if known:
        config = _read_config(path, content)
        mean, std = (config.mean, config.std) if config.statistics else (None, None)
        files.append(_Said(CONFIG, mean, std, config.image_size, config.frames))
    if known or not content:
        channels = _count(path, content, "num_channels", 3)
        files += _read_preprocessing(folder, channels)

    given = {"frames": frames, "image_size": image_size}
    chosen: dict[str, Any] = {}
    source = ""
    for field in ("mean", "std", "image_size", "frames"):
        said = [(getattr(file, field), file.source) for file in files]
        said = [(value, name) for value, name in said if value is not None]
        if given.get(field) is not None:
            chosen[field] = given[field]
        elif said:
            chosen[field], source = said[0]
            _refuse_contradiction(folder, field, said)
        if field == "std":
            config = config._replace(statistics=source)
    config = config._replace(**chosen)
    sizes = {"frames": f"{config.frames} frames", "image_size": f"{config.image_size} pixels"}
    if assumed := " of ".join(text for field, text in sizes.items() if field not in chosen):
        note = f"the file does not say the size of its clips: {assumed} are assumed"
        config = config._replace(notes=(*config.notes, note))
    return config


def _refuse_contradiction(folder: Path, field: str, said: list[tuple[Any, str]]) -> None:
    first, source = said[0]
    for value, other in said[1:]:
        # Some writers round to float32.
        if np.shape(value) != np.shape(first) or not np.allclose(value, first, rtol=1e-5):
            raise UserError(
                f"{folder}: {source} and {other} contradict each other: {field} {first} and "
                f"{value}; correct or remove one of the files"
            )


def _is_known(config: dict) -> bool:
    return config.get("model_type") in MODEL_TYPES or any(
        isinstance(config.get(key), dict) for key in (TIMM, V2)
    )


def _read_config(path: Path, config: dict) -> FolderConfig:
    """Read a config.json of a model that is known."""
    notes = []
    if "auto_map" in config:
        notes.append(f"{path.name} names Python code in the folder (auto_map): it was not run")
    ours = config.get("model_type") in MODEL_TYPES
    if not ours and isinstance(config.get(V2), dict):
        return _read_v2(path, config[V2])._replace(notes=tuple(notes))
    if not ours:
        return _read_timm(path, config[TIMM])._replace(notes=tuple(notes))
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path} has hidden_act {config['hidden_act']!r}: only 'gelu' is supported")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if epsilon != EPSILON:
        notes.append(f"config.json has layer_norm_eps {epsilon}; the reference's 1e-06 is used")
    pooling = bool(config.get("use_mean_pooling", True))
    return FolderConfig(
        # transformers does not write the values that equal its defaults, which are these.
        num_heads=_count(path, config, "num_attention_heads", 12),
        decoder_num_heads=_count(path, config, "decoder_num_attention_heads", 6),
        frames=_count(path, config, "num_frames", 16),
        image_size=_count(path, config, "image_size", 224),
        final_norm=not pooling if config["model_type"] == "videomae" else None,
        normalized_targets=bool(config.get("norm_pix_loss", True)),
        labels=_labels(config.get("id2label")),
        multi_label=config.get("problem_type") == MULTI_LABEL,
        notes=tuple(notes),
    )


def _count(path: Path, config: dict, key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{path} has {key} {value!r}: it must be a positive integer")
    return value


def _read_v2(path: Path, config: dict) -> FolderConfig:
    """Read the arguments of V2's own network on the hub, which are those of the reference."""
    for key in ("cos_attn", "qk_scale"):
        if config.get(key):
            raise UserError(f"{path} has {key} {config[key]!r}: such attention is not supported")
    return FolderConfig(
        num_heads=_count(path, config, "num_heads", 12),
        frames=_count(path, config, "all_frames" if "all_frames" in config else "num_frames", 16),
        image_size=_count(path, config, "img_size", 224),
    )


def _read_preprocessing(folder: Path, channels: int) -> Iterator[_Said]:
    """Read the preprocessor files, in the order in which transformers prefers them.

    Its AutoVideoProcessor takes the "video_processor" of processor_config.json, else
    video_preprocessor_config.json, else preprocessor_config.json; its AutoImageProcessor the
    "image_processor" of processor_config.json, else preprocessor_config.json.
    """
    names = (NESTED, VIDEO_PROCESSOR, PROCESSOR)
    found = {name: read_json(folder / name) for name in names if (folder / name).is_file()}
    nested = found.get(NESTED, {})
    video, image = nested.get("video_processor"), nested.get("image_processor")
    for source, content in (
        (f"{NESTED} (video_processor)", video),
        (VIDEO_PROCESSOR, found.get(VIDEO_PROCESSOR)),
        (f"{NESTED} (image_processor)", None if video else image),
        (PROCESSOR, found.get(PROCESSOR)),
    ):
        if isinstance(content, dict):
            yield _preprocessing(folder, source, content, channels)


def _preprocessing(folder: Path, source: str, content: dict, channels: int) -> _Said:
    """Read one preprocessor; its factor of pixels in [0, 255] goes into mean and std.

    With the factor f, transformers computes (f p - mean) / std. Here it is (p / 255 - mean') /
    std', which is the same with mean' = mean / (255 f) and std' = std / (255 f).
    """
    path = folder / source

    def switch(key: str) -> bool:
        return content.get(key) is not False

    for key in ("offset", "do_flip_channel_order"):
        if content.get(key):
            raise UserError(f"{path} has {key} {content[key]!r}, which is not supported")
    values: dict[str, Any] = {}
    for key, plain in (("image_mean", 0.0), ("image_std", 1.0)):
        # Left out, transformers takes 0.5; one number is for all channels.
        value = content.get(key) if content.get(key) is not None else 0.5
        value = value if switch("do_normalize") else plain
        values[key] = [value] * channels if type(value) in (int, float) else value
    factor = content.get("rescale_factor") if switch("do_rescale") else 1.0
    factor = 1 / 255 if factor is None else factor
    _check_numbers(path, **values, rescale_factor=[factor])
    mean, std = values["image_mean"], values["image_std"]
    if len(mean) != len(std) or not all(0 < x < math.inf for x in (factor, *std)):
        raise UserError(
            f"{path} has image_mean {mean}, image_std {std}, rescale_factor {factor}: there must "
            "be as many of both, and std and the factor above 0"
        )

    size = content.get("crop_size") if content.get("do_center_crop", True) else None
    if size is None and content.get("do_resize", True):
        size = content.get("size")
        size = size if isinstance(size, dict) and "height" in size else None
    height, width = (
        (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    )
    if height != width:
        raise UserError(f"{path} has clips of {height} x {width}: only square ones are supported")
    sizes = {"image_size": height, "num_frames": content.get("num_frames")}
    sides = {key: _count(path, sizes, key, 1) for key in sizes if sizes[key] is not None}
    scale = 255 * factor
    return _Said(
        source,
        tuple(x / scale for x in mean),
        tuple(x / scale for x in std),
        sides.get("image_size"),
        sides.get("num_frames"),
    )


def _read_timm(path: Path, config: dict) -> FolderConfig:
    """Read the config of an image model of timm, which has neither its size nor its heads."""
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    size = config.get("input_size", (3, 224, 224))
    _check_numbers(path, mean=mean, std=std, input_size=size)
    return FolderConfig(
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        statistics=path.name,
        image_size=int(size[-1]),
    )


def _check_numbers(path: Path, **given: Any) -> None:
    for name, values in given.items():
        numbers = isinstance(values, list | tuple) and all(
            type(x) in (int, float) and math.isfinite(x) for x in values
        )
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
        if folder_config.multi_label:
            config["problem_type"] = MULTI_LABEL
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
