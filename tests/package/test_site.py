"""The site builds with the extra `[docs]`: no warning, no dead link, every page."""

import subprocess
import sys

import pytest
from environments import install, make_environment
from runs import ROOT

OLDEST = ("sphinx==8.1.0", "furo==2024.8.6", "myst-nb==1.2.0", "sphinx-copybutton==0.5.2")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("versions", [OLDEST, ()], ids=["oldest", "newest"])
def test_the_site_builds_with(versions, distributions, tmp_path):
    python, out = make_environment(sys.executable, tmp_path / "venv"), tmp_path / "html"
    install(python, f"{distributions.wheel}[docs]", *versions)
    options = ("--fail-on-warning", "--keep-going", "--quiet", "--conf-dir", "docs")
    options += ("-D", "nb_execution_mode=off")  # tests/test_tutorials.py runs them
    command = [python, "-m", "sphinx", *options, "--doctree-dir", tmp_path / "doctrees", ROOT, out]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-5000:]

    pages = {path.relative_to(out).with_suffix(".md") for path in out.glob("docs/**/*.html")}
    sources = {path.relative_to(ROOT) for path in ROOT.glob("docs/**/*.md")}
    assert {source for source in sources if "_build" not in source.parts} <= pages
    reference = (out / "docs/reference/commands.html").read_text()
    assert "videomae data pack" in reference and "generated:" not in reference
    assert 'url=docs/index.html"' in (out / "index.html").read_text()
