"""Who may import whom. The direction is what keeps each room readable alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "videomae_jax"
# Each room and what it may import of the others. Modules at the top are rooms of one file.
ROOMS = {
    "errors": set(),
    "host": set(),
    "models": {"errors"},
    "data": {"host", "errors"},
    "config": {"errors"},
    "pictures": {"errors", "tasks"},
    "tasks": {"errors", "models", "data", "pictures"},
    "training": {"errors", "models", "data", "tasks", "config", "pictures"},
    "interop": {"errors", "models", "tasks", "config", "training"},
    "benchmark": {"host", "errors", "models", "data", "tasks", "training", "interop", "config"},
    "api": {"errors", "models", "tasks", "interop"},
    "commands": {
        *("errors", "host", "models", "data", "tasks", "training", "interop", "config", "pictures"),
        "benchmark",
    },
    "cli": {"errors", "commands"},
    "__init__": {"api"},
}
# Heavy or replaceable libraries, and the only files that know them.
ONLY_IN = {
    "tensorflow": {"data/pipeline.py", "data/records.py", "data/pack.py"},
    "tensorflow_datasets": {"data/records.py", "data/pack.py"},
    "clu": {"training/monitor.py"},
    "orbax": {"training/checkpoint.py"},
    "flax": {"models"},
    "av": {"data/decode.py", "data/encode.py", "pictures.py"},
    "decord": {"data/decoders.py"},
    "torchcodec": {"data/decoders.py"},
    "pyarrow": {"data/tables.py"},
    "safetensors": {"interop/safetensors_reader.py"},
    "torch": {"benchmark/peer_torch.py"},
    "transformers": {"benchmark/peer_torch.py"},
}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(file):
    """Every module a file imports, wherever in it."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_only_what_its_room_may(file):
    room = file.parts[0].removesuffix(".py")
    parts = [name.split(".") for name in imports(file)]
    others = {p[1] for p in parts if p[0] == "videomae_jax" and len(p) > 1} - {"__version__", room}
    assert others <= ROOMS[room]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_library_is_known_where_it_belongs(file):
    roots = {name.split(".")[0] for name in imports(file)}
    for library, places in ONLY_IN.items():
        if library in roots:
            assert places & {str(file), file.parts[0]}, f"{file} imports {library}"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_slow(words):
    """What the command line costs before it runs: a tenth of a second, not the ten of these."""
    program = (
        "import sys\n"
        "from videomae_jax.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "slow = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', 'numpy', 'av', 'PIL'}\n"
        "sys.exit(' '.join(slow & set(sys.modules)) or None)"
    )
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert "usage: videomae" in done.stdout


def test_the_benchmark_needs_no_reader_of_videos_and_no_checkpoints():
    """A GPU machine may have JAX, Flax and Optax alone."""
    code = """
import sys
for name in ("tensorflow", "av", "PIL", "clu", "orbax", "matplotlib"):
    sys.modules[name] = None  # importing it raises ImportError
from videomae_jax.benchmark import child, parts, step
from videomae_jax.commands import benchmark
job = step.Job("tiny", "pretrain", 1, ())
assert step.random_batch(job, step.job_config(job))["video"].shape[0] == 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, timeout=120)
