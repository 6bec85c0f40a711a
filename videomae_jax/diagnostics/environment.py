"""The versions and the machine that a measurement depends on."""

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]  # the folder that holds the package


def describe_environment() -> dict[str, str | None]:
    """Return the commit of the checkout (None without one), the machine, the versions, the date."""
    return {
        "commit": _commit(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    # An installed package may be inside a repository that is not its own.
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # git is not installed
        return None
