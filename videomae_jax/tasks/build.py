"""Code that all tasks share: model fields, geometry, execution settings, banner lines."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from videomae_jax.data.annotations import read_key_frames
from videomae_jax.data.decoders import open_decoder
from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.data.probing import read_sizes
from videomae_jax.data.sources import read_videos
from videomae_jax.data.synthetic import synthetic_videos
from videomae_jax.data.videos import Videos, split_videos
from videomae_jax.devices.distributed import numbers_of_first
from videomae_jax.devices.sharding import BATCH_SPEC
from videomae_jax.errors import UserError
from videomae_jax.models.attention import choose_implementation
from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.tokens import POSITIONS, Triple, patch_grid
from videomae_jax.models.vit import Execution, Size

# Up to this number of blocks they are unrolled, not run in a loop.
SHALLOW = {"cpu": 4, "tpu": 12}
PROBED = 16  # videos whose size decides about the canvas
DTYPES = ("float32", "bfloat16", "float16")  # of the computation


def encoder_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that the models of all tasks have in common.

    They are encoder, patch, mean, std, position_grid, positions and run, from `config.model` and
    `config.run`. Raises UserError for an impossible value.
    """
    model = config.model
    if len(model.mean) != len(model.std):
        raise UserError(
            f"model.mean has {len(model.mean)} channels, model.std {len(model.std)}: "
            "give one number per channel in both"
        )
    if model.positions not in POSITIONS:
        raise UserError(
            f"model.positions {model.positions!r} is unknown: use {' or '.join(POSITIONS)}"
        )
    return dict(
        encoder=Size(**model.encoder),
        patch=tuple(model.patch),
        mean=tuple(model.mean),
        std=tuple(model.std),
        position_grid=tuple(model.position_grid) or None,
        positions=model.positions,
        run=make_execution(config),
    )


def canvas_size(clip: ConfigDict) -> tuple[int, int]:
    """Return the height and the width that training clips have at most before their crop.

    Where `clip.source_height` and `clip.source_width` are 0, it is the clip with the margin of
    the released recipe: 256 x 340 for clips of 224 x 224.
    """
    return (
        clip.source_height or round(clip.height * 256 / 224),
        clip.source_width or round(clip.width * 340 / 224),
    )


def fit_canvas(config: ConfigDict, videos: Videos) -> ConfigDict:
    """Write the canvas of training clips into a config that leaves both its sides to us.

    It is `canvas_size`, but no wider than the shape of the videos and no larger than the videos,
    and at least the clip. Of many videos, the sizes of `PROBED` are read.
    """
    clip = config.clip
    if clip.source_height or clip.source_width:
        return config
    height, width = canvas_size(clip)
    indices = range(0, len(videos), -(-len(videos) // PROBED))
    sizes = read_sizes([videos.paths[i] for i in indices], videos.reader).values()
    if sizes:
        shape = min(width / height, max(w / h for h, w in sizes))
        largest = max(min(h, round(w / shape)) for h, w in sizes)
        height = max(clip.height, min(height, largest))
        width = max(clip.width, round(height * shape))
    # Another process may not have been able to read one of the videos.
    height, width = numbers_of_first([height, width])
    config = config.copy_and_resolve_references()
    config.clip.update(source_height=height, source_width=width)
    return config.lock()


def canvas_text(clip: ConfigDict) -> str:
    """Return the canvas of training clips for the start banner."""
    height, width = canvas_size(clip)
    return f"images of at most {height} x {width}"


def clip_mapper() -> Callable[[Callable], Callable]:
    """Return `jax.vmap`, on CPUs `map_in_turn`: a branch of a loop computes one side only."""
    return map_in_turn if platform_in_use() == "cpu" else jax.vmap


def map_in_turn(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function of the arrays of a batch that loops over the clips of each device."""

    def loop(*rows: Any) -> jax.Array:
        return jax.lax.map(lambda row: function(*row), rows)

    def each(*rows: Any) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        split = tuple(axis for axis in BATCH_SPEC[0] if axis in mesh.auto_axes)
        if all(mesh.shape[axis] == 1 for axis in split):
            return loop(*rows)
        spec = PartitionSpec(split)
        return jax.shard_map(
            loop, axis_names=set(split), in_specs=spec, out_specs=spec, check_vma=False
        )(*rows)

    return each


class Geometry(NamedTuple):
    """The patches of one clip."""

    grid: Triple  # (T, rows, columns)
    tokens: int
    values: int  # per patch, over all channels


def clip_geometry(clip: ConfigDict, model: VideoModel) -> Geometry:
    """Return the patches of a clip of `config.clip`.

    Raises UserError when a side is not a whole number of patches.
    """
    grid = patch_grid((clip.frames, clip.height, clip.width), model.patch)
    return Geometry(grid, math.prod(grid), model.values)


def patches_text(geometry: Geometry, model: VideoModel) -> str:
    """Return the channels, patch and tokens of a clip for the start banner."""
    patch = " x ".join(map(str, model.patch))
    return f"{len(model.mean)} channels; patch {patch}; {geometry.tokens} tokens"


def compute_line(run: Execution) -> str:
    """Return the execution settings for the start banner."""
    return f"{run.dtype.name}, attention {run.attention}, remat {run.remat}"


def row_keys(key: jax.Array, rows: jax.Array, *, stream: int | None = None) -> jax.Array:
    """Return typed PRNG keys [B], one for each row of a batch, made from the key of the step.

    rows: int32 [B], indices in the global batch, or other numbers of the clips. stream: of several
    that a task draws from.
    """
    if stream is not None:
        key = jax.random.fold_in(key, stream)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def flops_line(forward_flops: float, train_flops: float) -> str:
    """Return the FLOPs of one clip for the start banner."""
    return f"{forward_flops / 1e9:.4g} G forward, {train_flops / 1e9:.4g} G train a clip"


def positions_line(grid: Triple, model: VideoModel) -> str:
    """Return how `tokens.positions` makes the position embeddings, for the start banner.

    grid: (T, rows, columns) of a clip.
    """
    source = model.position_grid
    text = f"{model.positions} sin-cos, {' x '.join(map(str, grid))}"
    if source is None or tuple(source) == grid:
        return f"{text}, made afresh for this size"
    return f"{text}, interpolated from {' x '.join(map(str, source))}"


def platform_in_use() -> str:
    """Return the platform of the mesh in use; without one, of this machine's devices."""
    # `videomae plan` builds models for devices that this machine does not have.
    if jax.sharding.get_abstract_mesh().empty:  # `get_mesh` fails while tracing
        return jax.default_backend()
    return jax.sharding.get_mesh().devices.flat[0].platform


def make_execution(config: ConfigDict) -> Execution:
    """Return `config.run` with its "auto" values resolved for the platform in use.

    Raises UserError for an impossible value.
    """
    run = config.run
    depth = config.model.encoder.depth
    platform = platform_in_use()
    dtype = run.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise UserError(f"run.dtype {dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
    return Execution(
        dtype=jnp.dtype(dtype),
        attention=choose_implementation(run.attention, platform=platform, dtype=dtype),
        # On CPUs a loop over the blocks is as fast as unrolled blocks, compiles in half the time
        # and needs less memory; only with a few small blocks it is slower. On a GPU it is a
        # seventh slower, because it copies what each iteration stores for the backward pass.
        scan=run.scan or depth > SHALLOW.get(platform, depth),
        remat=run.remat,
    )


def has_teacher(config: ConfigDict) -> bool:
    """Whether a run learns from a teacher. Most tasks have none."""
    return "teacher" in config and bool(config.teacher)


def open_videos(config: ConfigDict) -> tuple[Videos, Videos | None]:
    """Return the training and the held-out videos; None if the config holds none out.

    For detection they have key frames, and both have the classes of training. Raises UserError
    for a missing list or decoder.
    """
    data = config.data
    if not data.train:
        raise UserError(
            "config.data.train is not set: give --config.data.train=MANIFEST_OR_FOLDER "
            "(or synthetic)"
        )
    open_decoder(data.decoder)
    memory = FrameMemory(budget=int(data.memory_gb * 1e9)) if data.memory_gb else None

    def read(source: str, class_names: tuple[str, ...] = ()) -> Videos:
        if config.task == "detect":
            videos = open_key_frames(config, source, class_names)
        else:
            videos = read_videos(source)
        return replace(videos, memory=memory, decoder=data.decoder)

    if data.train == "synthetic":
        videos = synthetic_videos(labelled=not has_teacher(config))
    else:
        videos = read(data.train)
    held_out = read(data.eval, videos.class_names or ()) if data.eval else None
    if held_out is not None:
        return videos, held_out
    if data.holdout:
        return split_videos(videos, holdout=data.holdout, seed=config.seed)
    return videos, None


def open_key_frames(config: ConfigDict, source: str, class_names: tuple[str, ...] = ()) -> Videos:
    """Open annotations, or packed records of them, with the settings of `config.data`.

    class_names: the classes of ids 1, 2, ...; () takes those of the config, first its class list.
    """
    data = config.data
    return read_key_frames(
        source,
        videos=data.videos,
        start=data.start,
        classes=class_names or data.classes or tuple(data.class_names),
        excluded=data.excluded,
    )
