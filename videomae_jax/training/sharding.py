"""The device mesh and who holds which part of what.

Three axes: "data" repeats the parameters and splits the batch; "fsdp" splits both;
"tensor" splits the heads and the hidden units. One table says how each parameter is split;
the optimizer's moments follow their parameters.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = P(("data", "fsdp"))

# Every leaf of the state matches exactly one row, by the end of its path. The leading axis of
# whatever stands under "blocks" is the depth.
RULES = (
    (r"blocks/attn/qkv", P(None, "fsdp", None, "tensor", None)),  # [depth, D, 3, heads, d]
    (r"blocks/attn/[qv]_bias", P(None, "tensor", None)),  # [depth, heads, d]
    (r"blocks/attn/proj/kernel", P(None, "tensor", "fsdp")),  # [depth, heads * d, D]
    (r"blocks/mlp/fc1/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/mlp/fc1/bias", P(None, "tensor")),
    (r"blocks/mlp/fc2/kernel", P(None, "tensor", "fsdp")),
    (r"blocks/(attn/proj|mlp/fc2)/bias", P()),
    (r"blocks/norm[12]/(scale|bias)", P()),
    (r"(encoder|decoder)/norm/(scale|bias)", P()),
    (r"encoder/embed/kernel", P("fsdp", None)),  # [P, D]
    (r"encoder/embed/bias", P()),
    (r"encoder_to_decoder/kernel", P("fsdp", None)),  # [D, Dd]
    (r"decoder/head/kernel", P(None, "fsdp")),  # [Dd, P]
    (r"decoder/head/bias", P()),
    (r"mask_token", P()),
    (r"fc_norm/(scale|bias)", P()),
    (r"(?<!decoder/)head/kernel", P("fsdp", None)),  # [D, classes]: of any number
    (r"(?<!decoder/)head/bias", P()),
    (r"heads/(query|value|linear/kernel|linear/bias)", P()),  # of probes, [R, ...]
    (r"count|step|skipped", P()),
)


def make_mesh(axes: dict[str, int], devices: list | None = None) -> Mesh:
    """Lay the devices out as {"data": .., "fsdp": .., "tensor": ..}; one size may be -1.

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [axes[name] for name in AXES]
    shape = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"mesh {shape}: sizes are at least 1, and at most one is -1 (the rest)")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise UserError(
            f"mesh {shape} needs {'a multiple of ' if -1 in sizes else ''}{known} devices, "
            f"there are {len(devices)}: use data=-1, fsdp=1, tensor=1"
        )
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_devices(mesh: Mesh) -> int:
    """Return over how many devices a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the first axis of every leaf of a batch."""
    return NamedSharding(mesh, BATCH_SPEC)


def state_sharding(abstract_state: Any, mesh: Mesh) -> Any:
    """Return a tree of NamedSharding for parameters, optimizer state and counters.

    Raises UserError for a leaf whose axis does not divide, ValueError for one that the table
    misses or names twice.
    """

    def leaf_sharding(path, leaf):
        name = path_name(path)
        specs = [spec for pattern, spec in RULES if re.search(rf"(^|/)({pattern})$", name)]
        if len(specs) != 1:
            raise ValueError(f"{name} {leaf.shape} matches {len(specs)} rows of sharding.RULES")
        for size, axis in zip(leaf.shape, specs[0], strict=False):
            if axis and size % mesh.shape[axis]:
                raise UserError(
                    f"{name} {leaf.shape}: {size} does not divide by mesh.{axis}="
                    f"{mesh.shape[axis]}: use {axis}={math.gcd(size, mesh.shape[axis])}"
                )
        return NamedSharding(mesh, specs[0])

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract_state)


def path_name(path: tuple) -> str:
    """Write a pytree path as "encoder/blocks/attn/qkv"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
