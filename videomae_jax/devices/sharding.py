"""The device mesh, and how parameters, optimizer state and batches are sharded over it.

The mesh has three axes: "data" replicates the parameters and splits the batch; "fsdp" splits
both; "tensor" splits the heads and the hidden units. Where a slower network joins slices of
devices, only "data" crosses it. One table gives the sharding of each parameter; the moments of
the optimizer are sharded like their parameters.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from videomae_jax.errors import UserError, divide_batch

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = P(("data", "fsdp"))

# Every leaf of the state matches exactly one row, by the end of its path. The leading axis of
# leaves under "blocks" is the depth.
RULES = (
    (r"blocks/(attn|cross)/qkv", P(None, "fsdp", None, "tensor", None)),  # [depth, D, 3, heads, d]
    (r"blocks/(attn|cross)/[qv]_bias", P(None, "tensor", None)),  # [depth, heads, d]
    (r"blocks/(attn|cross)/proj/kernel", P(None, "tensor", "fsdp")),  # [depth, heads * d, D]
    (r"blocks/mlp/fc1/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/mlp/fc1/bias", P(None, "tensor")),
    (r"blocks/mlp/fc2/kernel", P(None, "tensor", "fsdp")),
    (r"blocks/(attn/proj|cross/proj|mlp/fc2)/bias", P()),
    (r"blocks/norm[12]/(scale|bias)", P()),
    (r"(encoder|decoder)/norm/(scale|bias)", P()),
    (r"encoder/embed/kernel", P("fsdp", None)),  # [P, D]
    (r"encoder/embed/bias", P()),
    (r"encoder_to_decoder/kernel", P("fsdp", None)),  # [D, Dd]
    (r"decoder/head/kernel", P("fsdp", None)),  # [Dd, P]
    (r"decoder/head/bias", P()),
    (r"mask_token", P()),
    (r"fc_norm/(scale|bias)", P()),
    (r"(?<!decoder/)head/kernel", P("fsdp", None)),  # [D, classes]
    (r"(?<!decoder/)head/bias", P()),
    (r"(projector|predictor)/fc\d/kernel", P("fsdp", None)),
    (r"(projector|predictor)/norm\d/(scale|bias)", P()),
    (r"feature_heads/(half|full)/projection/kernel", P("fsdp", None)),  # [D, width of the teacher]
    (r"heads/(query|value|linear/kernel|linear/bias)", P()),  # of probes, [R, ...]
    (r"count|step|skipped|ns_coeffs", P()),  # the last one of Muon
)


def make_mesh(axes: dict[str, int], devices: list | None = None) -> Mesh:
    """Return the mesh of the sizes {"data": .., "fsdp": .., "tensor": ..}; one may be -1.

    "slices" is the number of groups of devices that a slower network joins; without it or at -1
    the devices report it. Raises UserError if the product of the sizes is not the number of
    devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = split_slices(devices, count=axes["slices"] if "slices" in axes else -1)
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
    data, fsdp, tensor = sizes
    if data % len(slices):
        raise UserError(
            f"mesh.data={data} does not divide by {len(slices)} slices, which only data may "
            f"cross: a slice has {len(slices[0])} devices for fsdp={fsdp} x tensor={tensor}"
        )
    auto = (AxisType.Auto,) * 3
    # Slice by slice, because `jax.make_mesh` follows the network within a slice.
    parts = [
        jax.make_mesh((data // len(slices), fsdp, tensor), AXES, axis_types=auto, devices=part)
        for part in slices
    ]
    return Mesh(np.concatenate([part.devices for part in parts]), AXES, axis_types=auto)


def split_slices(devices: list, *, count: int = -1) -> list[list]:
    """Group devices by their slice, or into `count` runs of equal length.

    count: of slices; -1 for what the devices report. Raises UserError if they report another
    number or `count` does not divide them.
    """
    # For GPUs each machine is a slice, and there "fsdp" may cross machines. Devices that
    # `videomae plan` compiles for have no such attribute if there is only one slice.
    numbers = [getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices]
    known = sorted(set(numbers))
    if count == 1:
        return [devices]
    if count in (-1, len(known)):
        return [[d for d, n in zip(devices, numbers, strict=True) if n == k] for k in known]
    if len(known) > 1 or count < 1 or len(devices) % count:
        legal = len(known) if len(known) > 1 else math.gcd(len(devices), max(count, 1))
        raise UserError(f"mesh.slices={count} of {len(devices)} devices: use {legal} or -1")
    size = len(devices) // count
    return [devices[start : start + size] for start in range(0, len(devices), size)]


def batch_devices(mesh: Mesh) -> int:
    """Return the number of devices that a batch is split over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every leaf of a batch: its first axis is split."""
    return NamedSharding(mesh, BATCH_SPEC)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Return which part of a batch this process reads: (index, number of parts).

    Processes that hold the same rows, because "tensor" crosses them, read the same part. Raises
    UserError if the parts of two processes overlap or have unequal sizes.
    """
    rows: dict[int, set[int]] = {}
    slices = batch_sharding(mesh).devices_indices_map((batch_devices(mesh),))
    for device in mesh.devices.flat:
        rows.setdefault(device.process_index, set()).add(slices[device][0].start or 0)
    shares = sorted({tuple(sorted(own)) for own in rows.values()})
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != batch_devices(mesh):
        raise UserError(
            f"mesh {dict(mesh.shape)} gives the processes overlapping or unequal parts of a "
            "batch: use a mesh.tensor that divides the devices of a process"
        )
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def state_sharding(abstract_state: Any, mesh: Mesh) -> Any:
    """Return the tree of NamedSharding of a state: parameters, optimizer state and counters.

    Raises UserError for an axis that the mesh does not divide, and ValueError for a leaf that
    does not match exactly one row of the table.
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
    """Return a pytree path as "encoder/blocks/attn/qkv"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_training_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError unless each device gets the same number of clips in each accumulated part."""
    unit = batch_devices(mesh) * config.accumulation
    unit //= math.gcd(unit, config.repeats)  # in videos from here on
    split = f"{batch_devices(mesh)} devices (data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']})"
    if config.accumulation > 1:
        split += f" x {config.accumulation} accumulated parts"
    if config.repeats > 1:
        split += f" at {config.repeats} clips each"
    divide_batch(config.batch_size, unit, by=split)
