"""The geometry of a model: what a run takes over from the checkpoint that it starts from."""

from collections.abc import Mapping, Set
from typing import Any

from ml_collections import ConfigDict

from videomae_jax.config import flatten

SIZE = ("clip.height", "clip.width")
STATISTICS = ("model.mean", "model.std")
IMAGENET = (0.485, 0.456, 0.406)
# The keys of one group are taken over together, or not at all if the user gave one of them.
GROUPS = (
    *((f"model.encoder.{name}",) for name in ("width", "depth", "heads", "mlp_width")),
    ("model.patch",),
    ("model.positions",),
    STATISTICS,
    ("clip.frames",),
    ("clip.stride",),
    SIZE,
)


def geometry_of(config: ConfigDict) -> dict[str, Any]:
    """Return the geometry in the config of a run, by dotted key, such as {"clip.frames": 16}.

    That is the encoder's size, the patch, the kind of positions, the pixel statistics, and the
    frames, stride and size of clips. There is no stride where clips are sampled sparsely.
    """
    leaves = flatten(config)
    geometry = {key: leaves[key] for group in GROUPS for key in group if key in leaves}
    if leaves.get("clip.sampling") == "sparse":
        del geometry["clip.stride"]
    return geometry


def adopt_geometry(
    config: ConfigDict, source: Mapping[str, Any], given: Set[str], *, name: str
) -> tuple[ConfigDict, str]:
    """Return (the config with the geometry of `source`, one line that says what changed).

    source: of a checkpoint; keys that it lacks stay as they are. given: the keys that the user
    chose, which stay too. name: of the source, for the line. The line is "" if nothing changed.
    """
    old = geometry_of(config)
    changes: dict[str, tuple[Any, Any]] = {}
    for group in GROUPS:
        if group == STATISTICS and _keeps_statistics(old, source):
            continue
        if given.isdisjoint(group):
            for key in group:
                if key in old and key in source and source[key] != old[key]:
                    changes[key] = old[key], source[key]
    if not changes:
        return config, ""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key: new for key, (_, new) in changes.items()})
    changed = ", ".join(f"{key} {before} -> {new}" for key, (before, new) in changes.items())
    return config.lock(), f"geometry of {name}: {changed}"


def _keeps_statistics(old: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    mean, other = old["model.mean"], source.get("model.mean", ())
    return mean != IMAGENET and len(mean) == len(other)
