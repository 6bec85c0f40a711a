"""Main memory between steps: what compiling left, and what the next step needs again."""

import ctypes
import math
from typing import Any

import jax

# Of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def disable_async_dispatch() -> None:
    """Call it before JAX first looks at its devices: on CPUs a step runs in the thread that calls.

    What a step needs is then the main thread's, the only one whose large arrays glibc can keep.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def trim_host_memory() -> None:
    """Call it between compiling and the first step.

    Forgets what JAX keeps of tracing and compiling, 40 MB for ViT-S: what is compiled already runs
    on, a jitted function that is called later is compiled then. On Linux with glibc it also gives
    the pages that only compiling needed back to the system, 0.1 to 0.7 GB. From then on a process
    that computes on CPUs keeps what it frees: XLA allocates the temporaries of every step anew,
    and the system would clear all their pages each time, about 0.4 s of CPU time a GB. It takes
    `disable_async_dispatch`: arrays of this size that other threads allocate are mapped anew
    whatever is said here.
    """
    jax.clear_caches()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return
    libc.malloc_trim(0)
    if jax.default_backend() == "cpu":
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def device_bytes(stats: Any) -> int:
    """Bytes a compiled function needs on each device, from its `memory_analysis()`."""
    # Donated arguments are reused for the outputs: counted once.
    extra = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + extra


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all arrays (or shapes) of a tree, over all devices."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def size_text(count: float) -> str:
    """Write bytes as 1.23 GB or 1.23 MB."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
