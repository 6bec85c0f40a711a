"""Build the distributions, and a folder whose files must never run."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from runs import ROOT

SKIPPED = (".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.mp4")


class Distributions(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def repository():
    """Where the links of the description lead: a repository, and one of its revisions."""
    return "https://example.org/lab/videomae_jax", "v1"


@pytest.fixture(scope="session")
def distributions(tmp_path_factory, repository):
    """The sdist of the checkout, and the wheel built from that sdist."""
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    # A build writes into the tree it reads, where other tests run.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*SKIPPED))
    # As .github/workflows/distributions.yml does.
    links = [ROOT / ".github/absolute_links.py", source / "README.md", *repository]
    for words in (links, ["-m", "build", "--no-isolation", "--outdir", out, source]):
        command = list(map(str, [sys.executable, *words]))
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Distributions(wheel, sdist)


@pytest.fixture
def hostile(tmp_path):
    """A folder with files of the names that the package reads, which raise when they run."""
    folder = tmp_path / "hostile"
    for name in ("configs/__init__", "configs/pretrain", "configs/finetune", "configs/demo"):
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemError(f'{__file__} was executed')\n")
        shutil.copy(file, folder / f"{Path(name).name}.py")
    for name in ("videomae_jax_plugins", "conftest", "setup"):
        shutil.copy(folder / "pretrain.py", folder / f"{name}.py")
    return folder
