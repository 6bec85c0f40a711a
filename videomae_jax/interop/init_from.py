"""Give a run the commit and the geometry of the checkpoint that it starts from."""

from collections.abc import Set

from ml_collections import ConfigDict

from videomae_jax.config import check_limits, flatten
from videomae_jax.devices.distributed import say
from videomae_jax.interop.checkpoint_files import read_geometry
from videomae_jax.interop.sources import on_hub, pin, same_model
from videomae_jax.tasks.geometry import SIZE, adopt_geometry, geometry_of

CHECKPOINTS = ("init_from", "teacher")  # keys that may be an address of the hub
CANVAS = ("clip.source_height", "clip.source_width")


def with_source_geometry(
    config: ConfigDict, given: Set[str], *, workdir: str | None = None
) -> ConfigDict:
    """Return a config with the geometry of its checkpoint; print the changes.

    An address of the hub in one of `CHECKPOINTS` gets the commit that it means now, so that the
    run stores it. given: the config keys that the user chose, which stay. The checkpoint is
    `init_from`; but a run that resumes in `workdir` has its own, and does not need `init_from` any
    more; it also keeps its canvas of training clips. Pre-training has a decoder and a mask for its
    own geometry, and keeps it.
    """
    # Not at the top: orbax takes seconds to import.
    from videomae_jax.training.checkpoint import has_checkpoint, load_run_config

    resumed = workdir if workdir and has_checkpoint(workdir) else ""
    for key in CHECKPOINTS:
        if on_hub(config.get(key, "")):
            config = _with_commit(config, key, load_run_config(resumed) if resumed else None)
    if config.task in ("pretrain", "amd"):
        return config
    if resumed:
        old = load_run_config(resumed)
        config = _with_canvas(config, old, given)
        source, geometry = resumed, geometry_of(old)
    elif config.init_from:
        source, geometry = config.init_from, read_geometry(config.init_from)
    else:
        return config
    config, changes = adopt_geometry(config, geometry, given, name=source)
    if changes:
        say(changes)
        check_limits(config)
    return config


def _with_commit(config: ConfigDict, key: str, resumed: ConfigDict | None) -> ConfigDict:
    """Return a config whose `key` is pinned; a run that resumes keeps its own commit."""
    config = config.copy_and_resolve_references()
    if resumed is None:
        config[key], line = pin(config[key])
        say(line)
    elif same_model(config[key], resumed.get(key, "")):
        config[key] = resumed[key]
    return config.lock()


def _with_canvas(config: ConfigDict, old: ConfigDict, given: Set[str]) -> ConfigDict:
    """Return a config with the canvas that a run has, unless the user chose a size.

    Chosen again, see `tasks.build.fit_canvas`, it would be another one where the videos that it
    looks at are others or cannot be read, and the run would not resume with the same clips.
    """
    sizes = {key: flatten(old).get(key) for key in CANVAS}
    if None in sizes.values() or "source_height" not in config.clip:
        return config
    if not given.isdisjoint((*SIZE, *CANVAS)):
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(sizes)
    return config.lock()
