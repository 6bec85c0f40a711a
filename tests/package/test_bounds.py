"""The oldest and the newest of every requirement, on every Python: each command works.

`make bounds` runs it alone. A Python that is not on this machine is skipped.
"""

import subprocess
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from environments import find_python, install, make_environment
from packaging.requirements import Requirement
from runs import ROOT

SMOKE = Path(__file__).parent / "smoke.py"


def lowest(wheel):
    """Yield `name==lower bound` for each requirement of a wheel and of its extra `parquet`."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(file.read(name))
    for requirement in map(Requirement, metadata.get_all("Requires-Dist")):
        if requirement.marker and not requirement.marker.evaluate({"extra": "parquet"}):
            continue
        (bound,) = (s.version for s in requirement.specifier if s.operator == ">=")
        yield f"{requirement.name}=={bound}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bound", ["lowest", "newest"])
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_command_works_with(version, bound, distributions, tmp_path):
    python = find_python(version)
    if not python:
        pytest.skip(f"no Python {version} on this machine")
    constraints, out = tmp_path / "constraints.txt", tmp_path / "out"
    constraints.write_text("\n".join(lowest(distributions.wheel) if bound == "lowest" else []))
    python = make_environment(python, tmp_path / "venv")
    install(python, "-c", constraints, f"{distributions.wheel}[parquet]")
    done = subprocess.run(
        [python, str(SMOKE), str(ROOT), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    assert not done.returncode, done.stdout[-5000:]
