"""What the vendors' data sheets say of one accelerator: the ceilings that speed is held against.

TPUs: cloud.google.com/tpu/docs, the pages v4, v5e, v5p, v6e and tpu7x. GPUs: NVIDIA's data sheets
of the A100, H100 and H200 (SXM). Nothing here was measured.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """The ceilings of one device, as JAX counts devices: half a chip of a TPU7x.

    flops: dense bf16, per second. memory: bytes. bandwidth: of that memory, bytes/s. link: to the
    neighbours of a slice or a host, all links together, one way. network: to other slices or
    hosts, one way.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float


# By the beginning of JAX's device_kind. Where no page gives a TPU's share of its data-centre
# network (v4), that of the v5p stands. A GPU's network is one 400 Gb/s adapter each (A100: 200).
CHIPS = {
    "NVIDIA A100": Chip(312e12, 80e9, 2.04e12, 300e9, 25e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1.56e12, 300e9, 25e9),
    "NVIDIA H100": Chip(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4.8e12, 450e9, 50e9),
    "TPU v4": Chip(275e12, 32 * GIB, 1.2e12, 300e9, 6.25e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9, 200e9, 3.1e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2.765e12, 600e9, 6.25e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1.638e12, 400e9, 12.5e9),
    "TPU7x": Chip(2307e12 / 2, 96 * GIB, 7.38e12 / 2, 300e9, 6.25e9),
}


def find_chip(device_kind: str) -> Chip | None:
    """Return the chip of a `jax.Device.device_kind`, or None for one that is not in the table."""
    # The longest name first: "TPU v5" also begins "TPU v5 lite".
    for name in sorted(CHIPS, key=len, reverse=True):
        if device_kind.startswith(name):
            return CHIPS[name]
    return None


def peak_flops(device_kind: str) -> float | None:
    """Return the bf16 peak of a device in FLOP/s, or None where it is not known."""
    chip = find_chip(device_kind)
    return chip.flops if chip else None
