"""The frozen teacher of a run: how its model is executed, and how its parameters are stored."""

import jax
from ml_collections import ConfigDict

from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Params


def teacher_config(config: ConfigDict) -> ConfigDict:
    """Return the config of a run's teacher: task, model, clip, class_names, and run.

    run: that of the student without `remat`, which saves nothing where nothing is kept. Raises
    UserError if `config.teacher` was not read, see `interop.teacher`.
    """
    if not config.teacher_model:
        raise UserError(f"config.teacher={config.teacher} was not read: use interop.with_teacher")
    teacher = config.teacher_model.copy_and_resolve_references()
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
