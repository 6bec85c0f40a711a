"""The versions and the machine that a measurement depends on."""

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path


def describe_environment() -> dict[str, str | None]:
    """Return the commit (None without git), the machine, the versions and the date."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # git is not installed
        commit = None
    return {
        "commit": commit,
        "machine": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
    }
