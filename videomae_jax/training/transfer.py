"""Load the encoder of a checkpoint into a classifier, a probe or a detector."""

from typing import Any, NamedTuple

import jax

from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import UserError

# Parameters of a checkpoint that the new model does not have, or learns from scratch.
NORM = "encoder/norm/"
LEFT_OUT = (
    NORM,
    "encoder_to_decoder/",
    "decoder/",
    "mask_token",
    "fc_norm/",
    "head/",
    "projector/",
    "predictor/",
    "feature_heads/",
)


class LoadTable(NamedTuple):
    """Which parameters were loaded, by names such as "encoder/blocks/attn/qkv".

    matched: loaded. missing: of the encoder, but not in the checkpoint. reshaped: in both, but
    of different shapes, "NAME SHAPE -> SHAPE". unexpected: in the checkpoint, but unknown.
    left_out: in the checkpoint, but not of the encoder. fresh: initialized, because they are
    learned from scratch: the head, and the norm of the encoder of a detector that starts from a
    classifier, which has none.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line of counts, then the names of each kind."""
        lines = [", ".join(f"{len(names)} {_words(key)}" for key, names in self._asdict().items())]
        for key, names in self._asdict().items():
            for index, name in enumerate(names):
                lines.append(f"  {'' if index else _words(key):11} {name}")
        return "\n".join(lines)


def transfer_encoder(pretrained: Any, fresh: Any) -> tuple[Any, LoadTable]:
    """Return `fresh` with the encoder of `pretrained`, and the table of its parameters.

    pretrained: parameters of `mae.VideoMAE`, or of a classifier or detector, whose head is left
    out. fresh: parameters of `classifier.VideoClassifier`, `probe.Probe` or
    `detector.VideoDetector`. Leaves are not copied or converted, so trees of shapes can be checked
    before any weight is read. Raises UserError if an encoder weight is missing or has another
    shape.
    """
    found, wanted = _by_name(pretrained), _by_name(fresh)
    encoder = [name for name in wanted if name.startswith("encoder/")]
    if "head/kernel" in wanted:  # a detector learns a missing norm; that of a probe is frozen
        encoder = [name for name in encoder if name in found or not name.startswith(NORM)]
    table = LoadTable(
        matched=tuple(n for n in encoder if n in found and found[n].shape == wanted[n].shape),
        missing=tuple(n for n in encoder if n not in found),
        reshaped=tuple(
            f"{n} {found[n].shape} -> {wanted[n].shape}"
            for n in encoder
            if n in found and found[n].shape != wanted[n].shape
        ),
        unexpected=tuple(n for n in found if n not in encoder and not n.startswith(LEFT_OUT)),
        left_out=tuple(n for n in found if n not in encoder and n.startswith(LEFT_OUT)),
        fresh=tuple(n for n in wanted if n not in encoder),
    )
    if table.missing:
        raise UserError(
            f"the checkpoint has no {', '.join(table.missing)}: {len(table.missing)} of "
            f"{len(encoder)} encoder weights are missing; use a VideoMAE pre-training checkpoint"
        )
    if table.reshaped:
        more = len(table.reshaped) - 1
        raise UserError(
            f"the checkpoint is of another model{_sizes(found, wanted)}: {table.reshaped[0]}"
            f"{f' and {more} more' if more else ''}; use the config of the size, the patch and the "
            "channels it was trained with"
        )

    def choose(path, leaf):
        name = path_name(path)
        return found[name] if name in encoder else leaf

    return jax.tree_util.tree_map_with_path(choose, fresh), table


def _sizes(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return the depth and width of two encoders in words; nothing if they are equal."""
    sizes = [tree["encoder/blocks/norm1/scale"].shape for tree in (found, wanted)]
    if sizes[0] == sizes[1]:
        return ""
    has, says = (f"{depth} blocks of width {width}" for depth, width in sizes)
    return f", of {has} where the config says {says}"


def _by_name(params: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _words(key: str) -> str:
    return key.replace("_", " ")
