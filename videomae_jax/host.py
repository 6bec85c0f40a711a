"""Ask the operating system about this machine."""

import os


def count_cores() -> int:
    """Return how many cores this process may use, at least 1."""
    # macOS and Windows have no affinity to ask for.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
