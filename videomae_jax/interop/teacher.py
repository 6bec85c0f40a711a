"""Give a run the model of its teacher."""

from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import read_config


def with_teacher(config: ConfigDict) -> ConfigDict:
    """Return a config with `teacher_model`, the model of its `teacher`, if it has one.

    That is its task, model, frames and size of clips, and class names, read without its weights.
    Task building then needs no file, and the checkpoints of the run say what it learned from.
    """
    if "teacher" not in config or not config.teacher:
        return config
    try:
        source = read_config(config.teacher)
    except UserError as error:
        raise UserError(f"config.teacher: {error}") from None
    names = source.data.class_names if "class_names" in source.data else ()
    clip = {name: source.clip[name] for name in ("frames", "height", "width")}
    config = config.copy_and_resolve_references()
    config.teacher_model = ConfigDict(
        dict(task=source.task, model=source.model.to_dict(), clip=clip, class_names=names)
    )
    return config.lock()
