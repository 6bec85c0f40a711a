"""Make virtual environments, and install into them with uv where it is found, else pip."""

import shutil
import subprocess
import sys
from pathlib import Path


def find_python(version: str) -> str | None:
    """Return a Python interpreter of a version such as "3.12", or None."""
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    found = [sys.executable, shutil.which(f"python{version}"), *sorted(map(str, installed))]
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in filter(None, found):
        # A shim of pyenv may be there and have no interpreter.
        done = subprocess.run([python, "-c", program], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return python
    return None


def make_environment(python: str, folder: Path) -> str:
    """Make an environment without any package, and return its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    return str(folder / "bin/python")


def install(python: str, *requirements: object) -> None:
    """Install requirements; options such as `-c` and `--no-deps` may be among them."""
    uv = shutil.which("uv")
    command = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    subprocess.run([*command, "--quiet", *map(str, requirements)], check=True)
