"""Give a run its teacher: the model, and the weights."""

from ml_collections import ConfigDict

from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import load_checkpoint, read_config
from videomae_jax.tasks.build import has_teacher
from videomae_jax.tasks.task import Params
from videomae_jax.training.step import Steps, put_teacher


def with_teacher(config: ConfigDict, *, workdir: str | None = None) -> ConfigDict:
    """Return a config with `teacher_model`, the model of its `teacher`, if it has one.

    That is its task, model, frames and size of clips, and class names, read without its weights.
    Task building then needs no file, and the checkpoints of the run say what it learned from.
    Raises UserError if it cannot be read, and for none where the run in `workdir` has one.
    """
    # Not at the top: orbax takes seconds to import.
    from videomae_jax.training.checkpoint import has_checkpoint, load_run_config

    if not has_teacher(config):
        # Here, because its videos need no labels, and the next error would be about these.
        if workdir and has_checkpoint(workdir):
            old = load_run_config(workdir)
            if has_teacher(old):
                raise UserError(
                    f"the run in {workdir} learns from a teacher, and config.teacher is not set: "
                    f"give --config.teacher={old.teacher}, or another --workdir"
                )
        return config
    try:
        source = read_config(config.teacher)
    except UserError as error:
        raise type(error)(f"config.teacher: {error}") from None
    names = source.data.class_names if "class_names" in source.data else ()
    clip = {name: source.clip[name] for name in ("frames", "height", "width")}
    config = config.copy_and_resolve_references()
    config.teacher_model = ConfigDict(
        dict(task=source.task, model=source.model.to_dict(), clip=clip, class_names=names)
    )
    return config.lock()


def load_teacher(config: ConfigDict, steps: Steps) -> tuple[Params, ...]:
    """Return the parameters of the teacher, the last argument of `steps.train`, if any."""
    return tuple(
        put_teacher(load_checkpoint(config.teacher).params, abstract)[0]
        for abstract in steps.abstract_teacher
    )
