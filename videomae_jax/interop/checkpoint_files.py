"""Open a checkpoint of any kind, and write one: the door of this room."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from videomae_jax.config import load_recipe
from videomae_jax.errors import UserError
from videomae_jax.interop.convert import ModelFacts, find_tensors, from_native, to_native
from videomae_jax.interop.inflate import (
    INFLATIONS,
    TUBELET,
    change_channels,
    is_image_model,
    video_from_image,
)
from videomae_jax.interop.safetensors_file import (
    indexed_files,
    read_safetensors,
    write_safetensors,
)
from videomae_jax.interop.torch_file import MappedTensor, map_torch, write_torch
from videomae_jax.interop.transformers_folder import (
    FolderConfig,
    is_model_folder,
    read_folder_config,
    write_folder_config,
)
from videomae_jax.models.vit import Size

FORMATS = ("native", "mcg", "hf", "safetensors", "stablehlo")
# What a folder may keep its weights in, the first that is there.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Checkpoint(NamedTuple):
    """A model as it was read.

    params: our tree, float32. config: as of a run of ours. labels: class names, if the file
    had any. report: what was read as what, to print; "" for our own checkpoints.
    """

    params: Mapping[str, Any]
    config: ConfigDict
    labels: tuple[str, ...]
    report: str


def load_checkpoint(
    path: str,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    inflate: str | None = None,
    tubelet: int | None = None,
    channels: int | None = None,
    ema: bool = False,
) -> Checkpoint:
    """Read a work directory, one of its steps, or anybody's file or folder of weights.

    The first keywords say what the file and a config beside it do not; they win over the
    config. inflate, tubelet: how an image model becomes a video encoder, see
    `images.video_from_image`. channels: change the embedding to so many, see
    `images.change_channels`. ema: the moving average of the weights, which only a run of ours
    that kept one has. Raises UserError when anything is damaged, missing, unexpected or
    in doubt.
    """
    checkpoint = _load(
        path,
        heads=(num_heads, decoder_num_heads),
        frames=frames,
        image_size=image_size,
        inflation=(inflate, tubelet),
        item="ema" if ema else "params",
    )
    return checkpoint if channels is None else _with_channels(checkpoint, channels)


def _load(path: str, *, heads, frames, image_size, inflation, item: str) -> Checkpoint:
    source = Path(path)
    if not source.exists():
        raise UserError(f"{path} does not exist: give a work directory, a file or a folder")
    if source.is_dir() and not any((source / name).is_file() for name in WEIGHTS):
        # Not at the top: orbax takes seconds to import, and files need none of it.
        from videomae_jax.training.checkpoint import load_params

        params, config = load_params(path, item=item)
        _refuse_inflation(path, inflation)
        if config.task == "probe":
            raise UserError(
                f"{path} holds probes of the encoder of {config.init_from}: give that one; what "
                f"the probes found is in {path}/metrics.jsonl"
            )
        labels = tuple(config.data.class_names) if config.task == "classify" else ()
        return Checkpoint(params, config, labels, "")
    if item != "params":
        raise UserError(f"{path} has no {item}: leave out --{item}, a run of ours may keep one")

    if source.is_dir():
        file = next(source / name for name in WEIGHTS if (source / name).is_file())
        beside = read_folder_config(source)
    else:
        file = source
        beside = (
            read_folder_config(source.parent) if is_model_folder(source.parent) else FolderConfig()
        )
    tensors, notes = _read_tensors(file)
    if beside == FolderConfig() and not (frames and image_size):
        taken = f"{frames or beside.frames} frames of {image_size or beside.image_size} pixels"
        notes.append(f"the file does not say of which clips it is: {taken} are taken")
    title = str(file)
    if is_image_model(tensors):
        inflate, tubelet = inflation
        tensors, changes = video_from_image(
            tensors,
            inflate=INFLATIONS[0] if inflate is None else inflate,
            tubelet=TUBELET if tubelet is None else tubelet,
        )
        title, notes = f"{file}, an image model made a video encoder", changes + notes
        if beside == FolderConfig():
            notes.append(
                "mean and std of ImageNet are taken, as MAE's; some ViTs of timm and of "
                "transformers have 0.5: those are read from a config in the same folder"
            )
    else:
        _refuse_inflation(path, inflation)
    params, facts = to_native(
        tensors,
        source=title,
        num_heads=heads[0],
        decoder_num_heads=heads[1],
        said_heads=(beside.num_heads, beside.decoder_num_heads),
    )
    beside = beside._replace(
        frames=frames or beside.frames, image_size=image_size or beside.image_size
    )
    if len(beside.mean) != facts.channels:
        # Nothing to go by: pixels stay in [0, 1].
        beside = beside._replace(mean=(0.0,) * facts.channels, std=(1.0,) * facts.channels)
        notes.append(f"mean 0 and std 1 are taken for its {facts.channels} channels")
    if facts.classes != len(beside.labels):
        beside = beside._replace(labels=())
    table = dataclasses.replace(facts.table, notes=(*facts.table.notes, *beside.notes, *notes))
    return Checkpoint(params, _config(facts, beside), beside.labels, str(table))


def _refuse_inflation(path: str, inflation: tuple) -> None:
    if inflation != (None, None):
        raise UserError(f"{path} holds a video model: leave out --inflate and --tubelet")


def _with_channels(checkpoint: Checkpoint, channels: int) -> Checkpoint:
    """Change the patch embedding, and leave out a decoder: it predicts the old channels."""
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
        "the old weights, means and stds; normalized grey is embedded as before"
    )
    if "decoder" in params:
        params = {"encoder": params["encoder"]}
        config.task = "encoder"
        report += "\n  note: the decoder is left out: it predicts the old channels"
    for name in ("mean", "std"):
        config.model[name] = (sum(config.model[name]) / old,) * channels
    return Checkpoint(params, config, checkpoint.labels, report.lstrip())


def save_checkpoint(path: str, checkpoint: Checkpoint, *, to: str) -> None:
    """Write a checkpoint in one of `FORMATS`; `path` must not exist and appears only whole."""
    if to not in FORMATS:
        raise UserError(f"format {to!r} is unknown: use one of {', '.join(FORMATS)}")
    target = Path(path).absolute()
    if target.exists():
        raise UserError(f"{path} exists: give a new path, or remove it first")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    write = {
        "native": _write_native,
        "mcg": _write_mcg,
        "hf": _write_hf,
        "safetensors": _write_st,
        "stablehlo": _write_stablehlo,
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write[to](draft, checkpoint)
        draft.rename(target)
    except OSError as problem:
        raise UserError(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)


def _read_tensors(file: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Read one file, or the ones an index names; say what was left aside."""
    if file.name.endswith(".bin.index.json"):
        tensors = {}
        for part in indexed_files(file):
            held = _read_pth(part)[0]
            if twice := sorted(tensors.keys() & held.keys()):
                raise UserError(f"{part} holds a second {', '.join(twice)}")
            tensors |= held
        return tensors, []
    if file.name.endswith((".safetensors", ".safetensors.index.json")) or _is_safetensors(file):
        return read_safetensors(file), []
    tensors, where, tree = _read_pth(file)
    aside = [key for key in tree if key != where.partition(".")[0]] if where else []
    notes = [f"the model is under {where!r}"] if where else []
    return tensors, notes + ([f"not read: {', '.join(map(str, aside))[:200]}"] if aside else [])


def _is_safetensors(file: Path) -> bool:
    """Whether a file begins as its format says, whatever its name: a length, then JSON."""
    with open(file, "rb") as content:
        head = content.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size


def _read_pth(file: Path) -> tuple[dict[str, MappedTensor], str, Any]:
    """Return the tensors of a model, the key they are under, and all the file holds."""
    tree, data = map_torch(file)
    views, where = find_tensors(tree, source=str(file))
    return {name: MappedTensor(view, data) for name, view in views.items()}, where, tree


def _config(facts: ModelFacts, beside: FolderConfig) -> ConfigDict:
    """Return a training config with the converted model in it."""
    recipe = "finetune" if facts.task == "classify" else "pretrain"
    config = load_recipe(recipe, "b,custom").unlock()
    config.name = f"{facts.task} model converted from {facts.dialect}"
    config.task = facts.task
    config.model.encoder = ConfigDict(dataclasses.asdict(facts.encoder))
    if facts.decoder:
        config.model.decoder = ConfigDict(dataclasses.asdict(facts.decoder))
    side = beside.image_size
    config.model.update(patch=facts.patch, mean=beside.mean, std=beside.std)
    config.clip.update(frames=beside.frames, height=side, width=side)
    # The margin around the crops stays what it is at 224.
    config.clip.source_height = round(config.clip.source_height * side / 224)
    config.clip.source_width = round(config.clip.source_width * side / 224)
    if facts.task == "classify":
        config.model.classes = facts.classes
        config.data.class_names = beside.labels
    else:
        config.normalized_targets = beside.normalized_targets
    return config.lock()


def _write_native(path: Path, checkpoint: Checkpoint) -> None:
    from videomae_jax.training.checkpoint import save_params

    save_params(str(path), checkpoint.params, checkpoint.config)


def _write_mcg(path: Path, checkpoint: Checkpoint) -> None:
    patch = checkpoint.config.model.patch
    write_torch(path, {"model": from_native(checkpoint.params, "mcg", patch=patch)})


def _write_st(path: Path, checkpoint: Checkpoint) -> None:
    patch = checkpoint.config.model.patch
    write_safetensors(path, from_native(checkpoint.params, "mcg", patch=patch))


def _write_hf(path: Path, checkpoint: Checkpoint) -> None:
    params, config = checkpoint.params, checkpoint.config
    if config.clip.height != config.clip.width:
        raise UserError(
            f"transformers has square clips only, not {config.clip.height} x {config.clip.width}"
        )
    tensors = from_native(params, "hf", patch=config.model.patch)
    beside = FolderConfig(
        frames=config.clip.frames,
        image_size=config.clip.height,
        mean=tuple(config.model.mean),
        std=tuple(config.model.std),
        # Only pre-training has targets.
        normalized_targets=config.task != "pretrain" or config.normalized_targets,
        labels=checkpoint.labels,
    )
    path.mkdir()
    write_folder_config(
        path,
        beside=beside,
        encoder=_size(params["encoder"]),
        decoder=_size(params["decoder"]) if "decoder" in params else None,
        patch=config.model.patch,
        classes=params["head"]["bias"].shape[0] if "head" in params else 0,
        final_norm="norm" in params["encoder"],
    )
    write_safetensors(path / "model.safetensors", tensors)


def _write_stablehlo(path: Path, checkpoint: Checkpoint) -> None:
    # Not at the top: it imports the models, and the other formats need no JAX.
    from videomae_jax.interop.stablehlo import write_stablehlo

    write_stablehlo(path, checkpoint.params, checkpoint.config, checkpoint.labels)


def _size(params: Mapping[str, Any]) -> Size:
    """Read a transformer's size off its parameters."""
    depth, width, _, heads, _ = params["blocks"]["attn"]["qkv"].shape
    return Size(width, depth, heads, params["blocks"]["mlp"]["fc1"]["bias"].shape[-1])
