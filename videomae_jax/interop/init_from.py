"""Give a run the geometry of the checkpoint that it starts from."""

from collections.abc import Set

from ml_collections import ConfigDict

from videomae_jax.config import check_limits
from videomae_jax.devices.distributed import say
from videomae_jax.interop.checkpoint_files import read_geometry
from videomae_jax.tasks.geometry import adopt_geometry, geometry_of


def with_source_geometry(
    config: ConfigDict, given: Set[str], *, workdir: str | None = None
) -> ConfigDict:
    """Return a fine-tuning or probe config with the geometry of its checkpoint; print the changes.

    given: the config keys that the user chose, which stay. The checkpoint is `init_from`; but a
    run that resumes in `workdir` has its own, and does not need `init_from` any more.
    Pre-training has a decoder and a mask for its own geometry, and keeps it.
    """
    # Not at the top: orbax takes seconds to import.
    from videomae_jax.training.checkpoint import has_checkpoint, load_run_config

    if config.task == "pretrain":
        return config
    if workdir and has_checkpoint(workdir):
        source, geometry = workdir, geometry_of(load_run_config(workdir))
    elif config.init_from:
        source, geometry = config.init_from, read_geometry(config.init_from)
    else:
        return config
    config, changes = adopt_geometry(config, geometry, given, name=source)
    if changes:
        say(changes)
        check_limits(config)
    return config
