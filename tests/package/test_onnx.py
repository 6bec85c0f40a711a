"""The extra `[onnx]` installs beside the package, and the exported files agree with the models."""

import subprocess
import sys

import pytest
from environments import install, make_environment
from runs import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["==0.14.0", "<0.18"])
def test_the_tests_of_onnx_pass_with(version, distributions, tmp_path):
    python = make_environment(sys.executable, tmp_path / "venv")
    needed = ("pytest", "pytest-timeout", f"jax2onnx{version}")
    install(python, f"{distributions.wheel}[onnx]", *needed)
    command = [python, "-m", "pytest", "-rs", "tests/interop/test_onnx_file.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode and "3 passed" in done.stdout, done.stdout[-5000:]
