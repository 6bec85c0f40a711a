"""The notebooks of docs/tutorials: stored without outputs, and each runs in an empty folder."""

import importlib.util
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from runs import ROOT

NOTEBOOKS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
# IPython ignores the exit code of a `!` line.
STOP_AT_A_FAILED_COMMAND = """
shell = get_ipython()
def system(command, run=shell.system):
    run(command)
    if shell.user_ns["_exit_code"]:
        raise RuntimeError(f"exit code {shell.user_ns['_exit_code']}: {command}")
shell.system = system
"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)  # ids too: there, and different
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_notebook
def test_a_notebook_runs_in_an_empty_folder(path, tmp_path):
    if path.stem == "06_tpu_pod" and importlib.util.find_spec("libtpu") is None:
        pytest.skip('needs libtpu: pip install "jax[tpu]"')
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STOP_AT_A_FAILED_COMMAND))
    # Without the settings of conftest.py, which make steps slow.
    alone = {key: os.environ[key] for key in ("HOME", "TMPDIR") if key in os.environ}
    alone["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=alone)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
