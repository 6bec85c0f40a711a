"""Code that all tasks share: encoder fields, geometry, execution settings, banner lines."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from videomae_jax.data.decoders import open_decoder
from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.data.sources import read_videos
from videomae_jax.data.synthetic import synthetic_videos
from videomae_jax.data.videos import Videos, split_videos
from videomae_jax.errors import UserError
from videomae_jax.models.attention import choose_implementation
from videomae_jax.models.tokens import Triple, patch_grid
from videomae_jax.models.vit import Execution, Size

# Blocks up to which they run in a row by themselves.
SHALLOW = {"cpu": 4, "tpu": 12}
DTYPES = ("float32", "bfloat16", "float16")  # of the computation


def encoder_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of a model that `config.model` and `config.run` decide for any task.

    Those are encoder, patch, mean, std, position_grid and run, on this machine's devices.
    """
    model = config.model
    if len(model.mean) != len(model.std):
        raise UserError(
            f"model.mean has {len(model.mean)} channels, model.std {len(model.std)}: "
            "give one number per channel in both"
        )
    return dict(
        encoder=Size(**model.encoder),
        patch=tuple(model.patch),
        mean=tuple(model.mean),
        std=tuple(model.std),
        position_grid=tuple(model.position_grid) or None,
        run=make_execution(config),
    )


class Geometry(NamedTuple):
    """The patches of one clip."""

    grid: Triple  # (T, rows, columns)
    tokens: int
    values: int  # of one patch, over all channels


def clip_geometry(clip: ConfigDict, model: Any) -> Geometry:
    """Return how a model cuts the clips of `config.clip` into patches."""
    grid = patch_grid((clip.frames, clip.height, clip.width), model.patch)
    return Geometry(grid, math.prod(grid), math.prod(model.patch) * len(model.mean))


def patches_text(geometry: Geometry, model: Any) -> str:
    """Return channels, patch and tokens of a clip for the start banner."""
    patch = " x ".join(map(str, model.patch))
    return f"{len(model.mean)} channels; patch {patch}; {geometry.tokens} tokens"


def compute_line(run: Execution) -> str:
    """Return how a model is executed, for the start banner."""
    return f"{run.dtype.name}, attention {run.attention}, remat {run.remat}"


def flops_line(forward_flops: float, train_flops: float) -> str:
    """Return the FLOPs of one clip for the start banner."""
    return f"{forward_flops / 1e9:.4g} G forward, {train_flops / 1e9:.4g} G train a clip"


def positions_line(grid: Triple, source: Triple | None) -> str:
    """Say which positions a clip of (T, rows, columns) patches has, as `tokens.positions`."""
    text = " x ".join(map(str, grid))
    if source is None or tuple(source) == grid:
        return f"sin-cos, {text}, made afresh for this size"
    return f"sin-cos, {text}, interpolated from {' x '.join(map(str, source))}"


def platform_in_use() -> str:
    """Return the platform of the mesh in use, else of this machine's devices."""
    # `videomae plan` builds models for a mesh of devices that are not there.
    if jax.sharding.get_abstract_mesh().empty:  # the only one to ask while tracing
        return jax.default_backend()
    return jax.sharding.get_mesh().devices.flat[0].platform


def make_execution(config: ConfigDict) -> Execution:
    """Resolve what `config.run` leaves to the machine: the platform in use."""
    run, depth = config.run, config.model.encoder.depth
    platform, dtype = platform_in_use(), run.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise UserError(f"run.dtype {dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
    return Execution(
        dtype=jnp.dtype(dtype),
        attention=choose_implementation(run.attention, platform=platform, dtype=dtype),
        # On CPUs a loop over blocks takes no longer than the blocks in a row, half of the time to
        # compile and less memory; but for a few small ones, of which turns take longer. On a GPU
        # it takes a seventh longer: what each turn keeps is copied into place.
        scan=run.scan or depth > SHALLOW.get(platform, depth),
        remat=run.remat,
    )


def open_videos(config: ConfigDict) -> tuple[Videos, Videos | None]:
    """Return the training and the held-out videos; None where the config names none."""
    data = config.data
    if not data.train:
        raise UserError(
            "config.data.train is not set: give --config.data.train=MANIFEST_OR_FOLDER "
            "(or synthetic)"
        )
    open_decoder(data.decoder)
    memory = FrameMemory(budget=int(data.memory_gb * 1e9)) if data.memory_gb else None
    if data.train == "synthetic":
        videos = synthetic_videos()
    else:
        videos = replace(read_videos(data.train), memory=memory, decoder=data.decoder)
    if data.eval:
        return videos, replace(read_videos(data.eval), memory=memory, decoder=data.decoder)
    if data.holdout:
        return split_videos(videos, holdout=data.holdout, seed=config.seed)
    return videos, None
