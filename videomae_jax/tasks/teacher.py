"""The frozen teacher of a run: how its model is executed, and how its parameters are stored."""

import jax
from ml_collections import ConfigDict

from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.tokens import patch_grid
from videomae_jax.tasks.build import Geometry
from videomae_jax.tasks.task import Params, Teacher


def teacher_config(config: ConfigDict) -> ConfigDict:
    """Return the config of a run's teacher: task, model, clip, class_names, and run.

    run: that of the student without `remat`, which saves nothing where nothing is kept. On clips
    of another size than its own its positions are interpolated, as it does not learn new ones.
    Raises UserError if the clips do not fit it.
    """
    name, clip = f"the teacher {config.teacher}", config.clip
    if not config.teacher_model:
        raise UserError(f"{name} was not read: use interop.teacher.with_teacher")
    teacher = config.teacher_model.copy_and_resolve_references().unlock()
    if teacher.clip.frames != clip.frames:
        raise UserError(
            f"{name} sees {teacher.clip.frames} frames, clip.frames is {clip.frames}: use "
            f"--config.clip.frames={teacher.clip.frames}, or another teacher"
        )
    channels, expected = len(config.model.mean), len(teacher.model.mean)
    if channels != expected:
        raise UserError(
            f"{name} sees {expected} channels, model.mean has {channels}: give {expected} numbers "
            "in model.mean and model.std, or another teacher"
        )
    patch = tuple(teacher.model.patch)
    try:
        patch_grid((clip.frames, clip.height, clip.width), patch)
    except UserError as problem:
        raise UserError(f"{name}: {problem}") from None
    if not teacher.model.position_grid:
        own = teacher.clip.frames, teacher.clip.height, teacher.clip.width
        teacher.model.position_grid = patch_grid(own, patch)
    teacher.run = ConfigDict({**config.run.to_dict(), "remat": "none"})
    return teacher


def stored_params(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    """Return the shapes of parameters, with the matrices of the encoder in the compute dtype.

    They are cast to it at every use, so the rest, which is small, stays as it is.
    """

    def stored(path, leaf):
        name = path_name(path)
        matrix = name.startswith("encoder/") and name.endswith(("/kernel", "/qkv"))
        return jax.ShapeDtypeStruct(leaf.shape, dtype if matrix else leaf.dtype)

    return jax.tree_util.tree_map_with_path(stored, params)


def teacher_line(
    config: ConfigDict, model: VideoModel, geometry: Geometry, teacher: Teacher
) -> str:
    """Return the line of the start banner about a teacher and its cost."""
    size, patch = model.encoder, " x ".join(map(str, model.patch))
    count = sum(leaf.size for leaf in jax.tree.leaves(teacher.params))
    return (
        f"{config.teacher}, {size.depth} blocks of width {size.width}, {count / 1e6:.4g} M "
        f"parameters in {model.run.dtype.name}; patch {patch}; {geometry.tokens} tokens; "
        f"{teacher.flops / 1e9:.4g} G forward a clip"
    )
