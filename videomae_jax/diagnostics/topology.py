"""The devices of a named topology, for ahead-of-time compilation without the devices.

A name is NAME-COUNT[xCOPIES]. For TPUs, COUNT is that of the accelerator type, TensorCores for v4,
v5p and tpu7x, chips for v5e and v6e, and COPIES are slices. For GPUs, GPUs per host x hosts.
"""

import importlib.util
import math
import os
import re
from typing import Any

import jax

from videomae_jax.devices.chips import find_chip
from videomae_jax.errors import UserError

# For each number of chips the shape of the slice; if several are offered, the most cubic one.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}
# The cores per chip that a name counts, and the shapes.
TPUS = {
    "v4": (2, _CUBIC),
    "v5e": (1, _FLAT),
    "v5p": (2, _CUBIC | {6144: "16x16x24"}),
    "v6e": (1, _FLAT),
    "tpu7x": (2, _CUBIC),
}
# The GPU description that XLA needs without a GPU, as the driver of a real one reports it.
_GPU_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{kind}"
"""
GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


def prepare_environment(topology: str) -> None:
    """Set the environment for compiling without the devices; call it before JAX is imported."""
    if topology != "here":
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server to ask which TPU this is
        # libtpu then requires these; any value works, as the topology is passed explicitly.
        os.environ["TPU_ACCELERATOR_TYPE"], os.environ["TPU_WORKER_HOSTNAMES"] = "v4-8", "localhost"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # there is no driver to ask


def find_devices(topology: str) -> tuple[list[jax.Device], list[int]]:
    """Return the devices of a topology, and the slice or host of each.

    "here" is the local devices. Raises UserError for an unknown name, and if the compiler for it is
    not installed.
    """
    if topology == "here":
        devices = jax.devices()
        return devices, [device.process_index for device in devices]
    name, count, copies = parse_topology(topology)
    return _gpus(name, count, copies) if name in GPUS else _tpus(name, count, copies)


def parse_topology(topology: str) -> tuple[str, int, int]:
    """Read "v5p-128" as ("v5p", 128, 1) and "h100-8x2" as ("h100", 8, 2)."""
    match = re.fullmatch(r"([a-z0-9]+)-([1-9]\d*)(?:x([1-9]\d*))?", topology)
    if match is None or match[1] not in (*TPUS, *GPUS):
        raise UserError(
            f"topology {topology!r} is unknown: use here or NAME-COUNT[xCOPIES] with NAME one of "
            f"{', '.join((*TPUS, *GPUS))}, such as v5e-64, v5p-128x2 (slices), h100-8x2 (hosts)"
        )
    name, count, copies = match[1], int(match[2]), int(match[3] or 1)
    if name in TPUS:
        cores, shapes = TPUS[name]
        if count % cores or count // cores not in shapes:
            counts = [chips * cores for chips in shapes]
            nearest = sorted(sorted(counts, key=lambda c: abs(math.log(c / count)))[:2])
            kind = "TensorCores" if cores > 1 else "chips"
            raise UserError(
                f"there is no slice of {count} {kind} of {name}: use "
                + " or ".join(f"{name}-{c}" for c in nearest)
            )
    elif count > 8:
        raise UserError(f"{count} GPUs in a host: use up to 8, as in {name}-8x{-(-count // 8)}")
    return name, count, copies


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package
        return False


def _tpus(name: str, count: int, copies: int) -> tuple[list[jax.Device], list[int]]:
    if not _installed("libtpu"):
        raise UserError('compiling for a TPU needs libtpu: pip install "jax[tpu]"')
    from jax.experimental import topologies

    cores, shapes = TPUS[name]
    options: dict[str, Any] = {"num_slices": copies} if copies > 1 else {}
    if name == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on a real one
    devices: Any = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{name}:{shapes[count // cores]}", **options
    ).devices
    slices = [device.slice_index if copies > 1 else 0 for device in devices]
    return list(devices), slices


def _gpus(name: str, count: int, copies: int) -> tuple[list[jax.Device], list[int]]:
    # cuDNN compiles the attention. The plugin of either CUDA version works.
    for package, modules in (
        ("the CUDA plugin", ("jax_cuda13_plugin", "jax_cuda12_plugin")),
        ("cuDNN", ("nvidia.cudnn",)),
    ):
        if not any(map(_installed, modules)):
            raise UserError(
                f"compiling for a GPU that is not there needs {package}: "
                'pip install "videomae_jax[plan-gpu]"'
            )
    from jax.experimental import topologies

    chip = find_chip(GPUS[name])
    assert chip is not None  # `chips` knows every GPU of GPUS
    target = _GPU_TEXT.format(
        bandwidth=int(chip.bandwidth), memory=int(chip.memory), kind=GPUS[name]
    )
    devices: Any = topologies.get_topology_desc(
        platform="cuda", topology=f"1x{copies}x{count}", target_config=target
    ).devices
    return list(devices), [device.process_index for device in devices]
