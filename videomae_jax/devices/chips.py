"""Peak speed and memory of accelerators, from the data sheets of their vendors.

TPUs: cloud.google.com/tpu/docs, the pages v4, v5e, v5p, v6e and tpu7x. GPUs: NVIDIA's data sheets
of the A100, H100 and H200 (SXM; of the A100 also PCIe with 40 GB). Nothing is measured.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """The limits of one JAX device, which on TPU7x is half a chip.

    flops: dense bf16, FLOP/s. memory: bytes. bandwidth: of that memory, bytes/s. link: to the
    other devices of a slice or host, the sum of all links, one way, bytes/s. network: to other
    slices or hosts, one way, bytes/s.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float


# By the beginning of JAX's device_kind. No page gives the data-centre network of a TPU v4: it is
# that of the v5p. The network of a GPU is one adapter of 400 Gb/s (A100: 200).
CHIPS = {
    "NVIDIA A100": Chip(312e12, 80e9, 2.04e12, 300e9, 25e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1.56e12, 300e9, 25e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 40e9, 1.56e12, 32e9, 25e9),
    "NVIDIA H100": Chip(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4.8e12, 450e9, 50e9),
    "TPU v4": Chip(275e12, 32 * GIB, 1.2e12, 300e9, 6.25e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9, 200e9, 3.1e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2.765e12, 600e9, 6.25e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1.638e12, 400e9, 12.5e9),
    "TPU7x": Chip(2307e12 / 2, 96 * GIB, 7.38e12 / 2, 300e9, 6.25e9),
}


def find_chip(device_kind: str) -> Chip | None:
    """Return the chip of a `jax.Device.device_kind`, or None if it is not in the table."""
    # The longest name first: "TPU v5 lite" also begins with "TPU v5".
    for name in sorted(CHIPS, key=len, reverse=True):
        if device_kind.startswith(name):
            return CHIPS[name]
    return None


def peak_flops(device_kind: str) -> float | None:
    """Return the bf16 peak of a device in FLOP/s, or None if it is unknown."""
    chip = find_chip(device_kind)
    return chip.flops if chip else None
