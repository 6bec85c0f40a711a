"""Ask the operating system about this machine."""

import os
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def count_cores() -> int:
    """Return how many cores this process may use, at least 1."""
    # macOS and Windows have no affinity to ask for.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_memory() -> int:
    """Return the bytes of main memory this process may use: a container or a job may have less."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = [CGROUPS / "memory/memory.limit_in_bytes"]  # of a container with cgroups of version 1
    if OWN.is_file():
        paths = [line[3:] for line in OWN.read_text().splitlines() if line.startswith("0::/")]
        groups = [CGROUPS / path[1:] for path in paths]
        files += [
            folder / "memory.max"
            for group in groups
            for folder in (group, *group.parents)
            if folder.is_relative_to(CGROUPS)
        ]
    limits = [file.read_text().strip() for file in files if file.is_file()]
    return min([whole, *(int(limit) for limit in limits if limit != "max")])
