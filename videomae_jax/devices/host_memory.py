"""Host memory of a training process, and sizes of arrays in bytes."""

import ctypes
import math
from typing import Any

import jax

# Parameters of mallopt(3), from malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def disable_async_dispatch() -> None:
    """Run a step in the thread that calls it; call this before JAX initializes its devices.

    On CPUs the memory of a step then belongs to the main thread, the only thread whose large
    arrays glibc can keep. Other platforms are not affected.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def trim_host_memory() -> None:
    """Free the memory that compiling used; call it between compiling and the first step.

    Clears the tracing and compilation caches of JAX, 40 MB for ViT-S: compiled functions still
    run, and a jitted function that is called later compiles again. On Linux with glibc it also
    returns the pages that only compiling needed to the system, 0.1 to 0.7 GB. From then on a
    process that computes on CPUs keeps the memory it frees: XLA allocates the temporaries of
    every step again, and the system would clear their pages each time, about 0.4 s of CPU time
    per GB. This needs `disable_async_dispatch`: large arrays that other threads allocate are
    always mapped anew.
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
    """Return the bytes that a compiled function needs on each device.

    stats: its `memory_analysis()`.
    """
    # Donated arguments are reused for the outputs: count them once.
    extra = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + extra


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all arrays or shapes of a tree, over all devices."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def size_text(count: float) -> str:
    """Format a number of bytes as 1.23 GB or 1.23 MB."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
