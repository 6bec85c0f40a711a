"""Load checkpoints of any kind, and save them in any format."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from videomae_jax import paths
from videomae_jax.config import load_recipe
from videomae_jax.data.ava_classes import AVA_CLASSES
from videomae_jax.errors import UserError
from videomae_jax.interop.convert import (
    TASKS,
    ModelFacts,
    find_tensors,
    from_native,
    match_tensors,
    to_native,
)
from videomae_jax.interop.download import local_weights
from videomae_jax.interop.hub import is_address
from videomae_jax.interop.inflate import (
    INFLATIONS,
    TUBELET,
    change_channels,
    is_image_model,
    video_from_image,
)
from videomae_jax.interop.released import CLASSES, SSV2
from videomae_jax.interop.safetensors_file import (
    indexed_files,
    read_safetensors,
    write_safetensors,
)
from videomae_jax.interop.sources import Source, find_source
from videomae_jax.interop.torch_file import Inert, MappedTensor, map_torch, write_torch
from videomae_jax.interop.transformers_folder import (
    CONFIG,
    IMAGENET_MEAN,
    WEIGHTS,
    FolderConfig,
    read_folder_config,
    write_folder_config,
)
from videomae_jax.models.tokens import patch_grid
from videomae_jax.models.vit import Size
from videomae_jax.tasks.geometry import geometry_of

FOREIGN = ("mcg", "hf", "safetensors")  # formats that other libraries read into their own models
FORMATS = ("native", *FOREIGN, "stablehlo", "onnx")


class Checkpoint(NamedTuple):
    """A model that was read.

    params: our tree, float32. config: in the form of a training config. labels: class names, if
    the file has any. report: a table of what was read, to print; "" for our own checkpoints.
    """

    params: Mapping[str, Any]
    config: ConfigDict
    labels: tuple[str, ...]
    report: str


class _Weights(NamedTuple):
    """A file of weights that was opened, and the config in its folder."""

    title: str
    tensors: Mapping[str, Any]
    folder: FolderConfig
    notes: list[str]


def load_checkpoint(
    path: str,
    *,
    task: str | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    inflate: str | None = None,
    tubelet: int | None = None,
    channels: int | None = None,
    ema: bool = False,
) -> Checkpoint:
    """Read a work directory, one of its steps, or a foreign file or folder of weights.

    path: of it, or its address on the hub, or models:NAME, see `sources.find_source`. The config of
    a model of the hub has the address with the commit as `init_from`. task: of a foreign file with
    a head, "detect" or "classify"; None decides, and raises UserError if it cannot. num_heads,
    decoder_num_heads, frames, image_size: what a foreign file does not contain; they take
    precedence over a config in its folder, and are refused for a run of ours. inflate, tubelet: how
    to inflate an image model to a video encoder, see `inflate.video_from_image`. channels: the
    number of input channels to change the patch embedding to, see `inflate.change_channels`. ema:
    read the moving average of the weights, of a run of ours that keeps one. Raises UserError for
    anything damaged, missing, unexpected or ambiguous.
    """
    source = find_source(path, report=True)
    path = source.path
    if _is_run(path):
        known = dict(
            task=task,
            num_heads=num_heads,
            decoder_num_heads=decoder_num_heads,
            frames=frames,
            image_size=image_size,
        )
        for name, value in known.items():
            if value is not None:
                name = name.replace("_", "-")
                raise UserError(
                    f"{path} is a run of ours, which says its {name}: leave out --{name}"
                )
        _refuse_inflation(path, inflate, tubelet)
        checkpoint = _load_run(path, item="ema" if ema else "params")
    elif ema:
        raise UserError(f"{path} has no ema: leave out --ema, a run of ours may keep one")
    else:
        with local_weights(path) as local:
            weights = _open_weights(
                local, frames=frames, image_size=image_size, inflate=inflate, tubelet=tubelet
            )
            weights = weights._replace(title=weights.title.replace(local, path))
            checkpoint = _convert(
                weights,
                task=task,
                num_heads=source.num_heads if num_heads is None else num_heads,
                decoder_num_heads=decoder_num_heads,
            )
        if frames is not None or image_size is not None:
            clip = checkpoint.config.clip
            patch_grid((clip.frames, clip.height, clip.width), checkpoint.config.model.patch)
    if source.address:
        with checkpoint.config.unlocked():
            checkpoint.config.init_from = source.address
    return checkpoint if channels is None else _with_channels(checkpoint, channels)


def read_config(path: str) -> ConfigDict:
    """Return the config of anything that `load_checkpoint` reads, without loading its weights."""
    return _read_config(find_source(path))


def read_geometry(path: str) -> dict[str, Any]:
    """Return the geometry of anything that `load_checkpoint` reads, without loading its weights.

    By config key, see `tasks.geometry`. A foreign file does not say the stride of its clips.
    """
    source = find_source(path)
    config = _read_config(source)
    _refuse_probe(source.path, config)
    geometry = geometry_of(config)
    if not _is_run(source.path):
        del geometry["clip.stride"]
    return geometry


def _read_config(source: Source) -> ConfigDict:
    if _is_run(source.path):
        from videomae_jax.training.checkpoint import load_run_config

        return load_run_config(source.path)
    # Whoever needs the config alone goes on to load the weights.
    with local_weights(source.path, keep=True) as local:
        weights = _open_weights(local)
        heads = weights.folder.num_heads, weights.folder.decoder_num_heads
        facts, _ = match_tensors(
            weights.tensors, source=weights.title, num_heads=source.num_heads, config_heads=heads
        )
        return _config(facts, _complete(weights.folder, facts))


def _is_run(path: str) -> bool:
    """Whether a path is a folder without weights of others: a work directory or a step of one."""
    if not paths.exists(path):
        raise UserError(f"{path} does not exist: give a work directory, a file or a folder")
    return paths.is_folder(path) and not set(WEIGHTS) & set(paths.names(path))


def _load_run(path: str, *, item: str) -> Checkpoint:
    # Not at the top: orbax takes seconds to import, and foreign files do not need it.
    from videomae_jax.training.checkpoint import load_params

    params, config = load_params(path, item=item)
    _refuse_probe(path, config)
    labels = tuple(config.data.class_names) if config.task in TASKS else ()
    return Checkpoint(params, config, labels, "")


def _open_weights(
    path: str,
    *,
    frames: int | None = None,
    image_size: int | None = None,
    inflate: str | None = None,
    tubelet: int | None = None,
) -> _Weights:
    """Open a foreign file or folder; the tensors of an image model are inflated."""
    source = Path(path)
    if source.is_dir():
        file = next(source / name for name in WEIGHTS if (source / name).is_file())
    else:
        file = source
    folder = read_folder_config(
        file.parent, required=source.is_dir(), frames=frames, image_size=image_size
    )
    title = str(file)
    tensors, notes = _read_tensors(file)
    if is_image_model(tensors):
        tensors, changes = video_from_image(
            tensors,
            inflate=INFLATIONS[0] if inflate is None else inflate,
            tubelet=TUBELET if tubelet is None else tubelet,
        )
        title, notes = f"{file}, an image model inflated to a video encoder", changes + notes
    else:
        _refuse_inflation(path, inflate, tubelet)
    return _Weights(title, tensors, folder, notes)


def left_out_of(config: ConfigDict, to: str) -> list[str]:
    """Return the settings of a model that a file of the format `to` cannot hold, one line each.

    Such files are read with the values of the recipe of their task, those of detectors with the
    values of the reference's own.
    """
    if to not in FOREIGN or config.task not in TASKS:
        return []
    reference = _recipe(config.task, config.model.classes)
    if config.task == "detect":
        owner = "the reference's detectors have"
        keys = {"roi": tuple(reference.roi), "boxes": ("extend", "whole")}
        keys["clip"] = ("rate", "stride")
    else:
        owner = "its readers assume"
        sparse = "sparse" in (config.clip.sampling, reference.clip.sampling)
        keys = {"clip": ("sampling",) if sparse else ("stride",)}
    if to != "hf":
        keys["model"] = ("mean", "std")
    lines = [
        f"{group}.{key} {config[group][key]} is not in the file, and {owner} "
        f"{reference[group][key]}"
        for group, names in keys.items()
        for key in names
        if config[group][key] != reference[group][key]
    ]
    if to == "hf":
        return lines
    if config.task == "classify" and config.model.multi_label:
        lines.append("this format does not say that the model knows several labels a video")
    known = AVA_CLASSES if config.task == "detect" else ()
    if tuple(config.data.class_names) not in ((), known):
        lines.append("the names of the classes are not in the file")
    return lines


def _convert(
    weights: _Weights, *, task: str | None, num_heads: int | None, decoder_num_heads: int | None
) -> Checkpoint:
    """Convert the tensors of a foreign file to our parameters, with a config."""
    folder, notes = weights.folder, weights.notes
    params, facts = to_native(
        weights.tensors,
        source=weights.title,
        task=task,
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        config_heads=(folder.num_heads, folder.decoder_num_heads),
    )
    if folder.final_norm and facts.task != "classify" and "norm" not in params["encoder"]:
        raise UserError(
            f"{weights.title} lacks the encoder's final norm, which config.json promises "
            "(use_mean_pooling false)"
        )
    if folder.final_norm is False and facts.task != "classify" and "norm" in params["encoder"]:
        notes.append(
            "the encoder's final norm is used; transformers leaves it out, because config.json has "
            "use_mean_pooling true"
        )
    folder = _complete(folder, facts)
    if facts.task == "detect":
        notes.append("boxes are aligned as in the reference: 7 x 7, roi.aligned False")
    config = _config(facts, folder)
    if facts.task == "classify" and config.clip.sampling == "sparse":
        notes.append(
            f"{facts.classes} classes: clips and views as for Something-Something V2, frames of "
            f"the whole video and {config.views} views"
        )
    notes.append(_statistics(folder))
    table = dataclasses.replace(facts.table, notes=(*facts.table.notes, *folder.notes, *notes))
    return Checkpoint(params, config, folder.labels, str(table))


def _complete(folder: FolderConfig, facts: ModelFacts) -> FolderConfig:
    """Replace the pixel statistics and labels that do not fit the tensors.

    Detectors have those of AVA's recipe, and the names of its classes if they are as many.
    """
    channels = facts.channels
    if facts.task == "detect" and not folder.statistics:
        model = load_recipe("detect", "b,ava").model
        folder = folder._replace(mean=tuple(model.mean), std=tuple(model.std))
    if facts.task == "detect" and not folder.labels and facts.classes == len(AVA_CLASSES):
        folder = folder._replace(labels=AVA_CLASSES)
    if len(folder.mean) != channels:
        # timm leaves three statistics in config.json, whatever the channels of the weights.
        if folder.statistics not in ("", CONFIG):
            raise UserError(
                f"{folder.statistics} has pixel statistics of {len(folder.mean)} channels, the "
                f"weights have {channels}"
            )
        # Unknown: pixels stay in [0, 1].
        folder = folder._replace(mean=(0.0,) * channels, std=(1.0,) * channels, statistics="")
    return folder if facts.classes == len(folder.labels) else folder._replace(labels=())


def _statistics(folder: FolderConfig) -> str:
    """Say which pixel statistics are used, and where they are from."""
    mean, std = (", ".join(f"{x:.6g}" for x in values) for values in (folder.mean, folder.std))
    if folder.statistics:
        source = f"from {folder.statistics}"
    elif folder.mean == IMAGENET_MEAN:
        source = "those of ImageNet, are assumed, as no file says them"
        source += " (the original and MAE use these, some ViTs of timm and transformers 0.5)"
    elif any(folder.mean):
        source = "those of the reference's detectors, are assumed, as no file says them"
    else:
        source = f"are assumed for its {len(folder.mean)} channels"
    return f"pixels in [0, 1]: mean {mean}, std {std}, {source}"


def _refuse_probe(path: str, config: ConfigDict) -> None:
    if config.task == "probe":
        raise UserError(
            f"{path} holds probes of the encoder of {config.init_from}: give that one; the "
            f"results of the probes are in {path}/metrics.jsonl"
        )


def _refuse_inflation(path: str, inflate: str | None, tubelet: int | None) -> None:
    if inflate is not None or tubelet is not None:
        raise UserError(f"{path} holds a video model: leave out --inflate and --tubelet")


def _with_channels(checkpoint: Checkpoint, channels: int) -> Checkpoint:
    """Change the patch embedding, and drop the decoder, which predicts the old channels."""
    params, config = dict(checkpoint.params), checkpoint.config.copy_and_resolve_references()
    old = len(config.model.mean)
    if channels < 1:
        raise UserError(f"{channels} channels: use 1 or more, such as {old}")
    if channels == old:
        return checkpoint
    encoder = params["encoder"]
    kernel = change_channels(np.asarray(encoder["embed"]["kernel"]), old=old, new=channels)
    embed = {**encoder["embed"], "kernel": kernel}
    params["encoder"] = {**encoder, "embed": embed}
    report = (
        f"{checkpoint.report}\n  note: {old} channels became {channels}, each with the mean of "
        "the old weights, means and stds; the embedding of normalized grey does not change"
    )
    if "decoder" in params:
        params = {"encoder": params["encoder"]}
        config.task = "encoder"
        report += "\n  note: the decoder is left out: it predicts the old channels"
    for name in ("mean", "std"):
        config.model[name] = (sum(config.model[name]) / old,) * channels
    return Checkpoint(params, config, checkpoint.labels, report.lstrip())


def save_checkpoint(path: str, checkpoint: Checkpoint, *, to: str) -> None:
    """Write a checkpoint in one of `FORMATS` to `path`, which must not exist.

    An interrupted write leaves nothing at `path`; in a bucket it may leave a part, of a work
    directory one that no reader takes for a checkpoint.
    """
    if to not in FORMATS:
        raise UserError(f"format {to!r} is unknown: use one of {', '.join(FORMATS)}")
    if to in FOREIGN and checkpoint.config.model.positions != "1d":
        raise UserError(
            f"the readers of {to} files compute 1d positions, and the model has "
            f"{checkpoint.config.model.positions}: use native, stablehlo or onnx"
        )
    if is_address(path):
        raise UserError(f"{path} is an address of the hub: `videomae convert` writes there")
    if paths.exists(path):
        raise UserError(f"{path} exists: give a new path, or remove it first")
    if to == "native" and paths.is_remote(path):
        _write_native(path, checkpoint)  # orbax marks what is complete
        return
    write = {
        "native": _write_native,
        "mcg": _write_mcg,
        "hf": _write_hf,
        "safetensors": _write_safetensors,
        "stablehlo": _write_stablehlo,
        "onnx": _write_onnx,
    }
    with paths.writing(path):
        paths.make_folder(paths.as_path(path).parent)
        with paths.to_write_whole(path) as draft:
            write[to](draft, checkpoint)


def _read_tensors(file: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Read one file, or those of an index; return the tensors and notes on what was not read."""
    if file.name.endswith(".bin.index.json"):
        tensors: dict[str, MappedTensor] = {}
        for part in indexed_files(file):
            held = _read_pth(part)[0]
            if twice := sorted(tensors.keys() & held.keys()):
                raise UserError(f"{part} holds a second {', '.join(twice)}")
            tensors |= held
        return tensors, []
    if file.name.endswith((".safetensors", ".safetensors.index.json")) or _is_safetensors(file):
        return read_safetensors(file), []
    tensors, where, tree = _read_pth(file)
    notes = []
    if where:
        notes.append(f"the model is under {where!r}")
    others, node = [], tree
    for wrapper in filter(None, where.split(".")):
        others += [item for item in node.items() if item[0] != wrapper]
        node = node[wrapper]
    others += [item for item in node.items() if item[0] not in tensors]
    if others:
        names = [f"{k} ({v.name})" if isinstance(v, Inert) else str(k) for k, v in others]
        notes.append(f"not read: {', '.join(names)[:200]}")
    return tensors, notes


def _is_safetensors(file: Path) -> bool:
    """Whether a file of any name begins as safetensors do: with a length, then JSON."""
    try:
        with open(file, "rb") as content:
            head = content.read(9)
    except OSError as problem:
        raise UserError(f"cannot read {file}: {problem.strerror or problem}") from None
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size


def _read_pth(file: Path) -> tuple[dict[str, MappedTensor], str, Any]:
    """Return the tensors of a model, the key they are under, and the whole content."""
    tree, data = map_torch(file)
    views, where = find_tensors(tree, source=str(file))
    return {name: MappedTensor(view, data) for name, view in views.items()}, where, tree


def _config(facts: ModelFacts, folder: FolderConfig) -> ConfigDict:
    """Return a training config for a converted model."""
    config = _recipe(facts.task, facts.classes).unlock()
    config.name = f"{facts.task} model converted from {facts.dialect}"
    config.task = facts.task
    config.model.encoder = ConfigDict(dataclasses.asdict(facts.encoder))
    if facts.decoder:
        config.model.decoder = ConfigDict(dataclasses.asdict(facts.decoder))
    side = folder.image_size
    config.model.update(patch=facts.patch, mean=folder.mean, std=folder.std)
    config.clip.update(frames=folder.frames, height=side, width=side)
    # The same margin around the crops as at 224.
    for name in ("source_height", "source_width", "short_side"):
        if name in config.clip:
            config.clip[name] = round(config.clip[name] * side / 224)
    if facts.task in TASKS:
        config.model.classes = facts.classes
        config.data.class_names = folder.labels
        if facts.task == "classify":
            config.model.multi_label = folder.multi_label
    else:
        config.normalized_targets = folder.normalized_targets
    return config.lock()


def _recipe(task: str, classes: int) -> ConfigDict:
    """Return the recipe whose settings a foreign model gets.

    No file says which frames make a clip. Only the classifiers of Something-Something are trained
    on frames of the whole video, and it is recognized by the number of its classes.
    """
    data = "ssv2" if classes == CLASSES[SSV2] else "custom"
    recipes = {"classify": ("finetune", f"b,{data}"), "detect": ("detect", "b,ava")}
    return load_recipe(*recipes.get(task, ("pretrain", "b,custom")))


def _write_native(path: str | Path, checkpoint: Checkpoint) -> None:
    from videomae_jax.training.checkpoint import save_params
    from videomae_jax.training.workdir import disk_reason

    try:
        save_params(str(path), checkpoint.params, checkpoint.config)
    except UserError:
        raise
    except Exception as error:  # tensorstore's have no class of their own
        if paths.is_remote(path):
            problem: Exception | None = paths.explain(error, path)
        elif isinstance(error, OSError):
            raise
        else:
            reason = disk_reason(error, str(path))
            problem = OSError(reason) if reason else None
        if problem is None:
            raise
        raise problem from None


def _write_mcg(path: Path, checkpoint: Checkpoint) -> None:
    patch = checkpoint.config.model.patch
    write_torch(path, {"model": from_native(checkpoint.params, "mcg", patch=patch)})


def _write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    patch = checkpoint.config.model.patch
    write_safetensors(path, from_native(checkpoint.params, "mcg", patch=patch))


def _write_hf(path: Path, checkpoint: Checkpoint) -> None:
    params, config = checkpoint.params, checkpoint.config
    if config.clip.height != config.clip.width:
        raise UserError(
            f"transformers has square clips only, not {config.clip.height} x {config.clip.width}"
        )
    tensors = from_native(params, "hf", patch=config.model.patch)
    folder = FolderConfig(
        frames=config.clip.frames,
        image_size=config.clip.height,
        mean=tuple(config.model.mean),
        std=tuple(config.model.std),
        # Other tasks have no such key.
        normalized_targets="normalized_targets" not in config or config.normalized_targets,
        labels=checkpoint.labels,
        multi_label=config.task == "classify" and config.model.multi_label,
    )
    path.mkdir()
    write_folder_config(
        path,
        folder_config=folder,
        encoder=_size(params["encoder"]),
        decoder=_size(params["decoder"]) if "decoder" in params else None,
        patch=config.model.patch,
        classes=params["head"]["bias"].shape[0] if "head" in params else 0,
        final_norm="norm" in params["encoder"],
    )
    write_safetensors(path / "model.safetensors", tensors)


def _write_stablehlo(path: Path, checkpoint: Checkpoint) -> None:
    # Not at the top: it imports the networks of all tasks, which no other format needs.
    from videomae_jax.interop.stablehlo import write_stablehlo

    write_stablehlo(path, checkpoint.params, checkpoint.config, checkpoint.labels)


def _write_onnx(path: Path, checkpoint: Checkpoint) -> None:
    from videomae_jax.interop.onnx_file import write_onnx  # likewise

    write_onnx(path, checkpoint.params, checkpoint.config, checkpoint.labels)


def _size(params: Mapping[str, Any]) -> Size:
    """Return the size of a transformer with these parameters."""
    depth, width, _, heads, _ = params["blocks"]["attn"]["qkv"].shape
    return Size(width, depth, heads, params["blocks"]["mlp"]["fc1"]["bias"].shape[-1])
