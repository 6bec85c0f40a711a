"""Who may import whom. The direction is what keeps each room readable alone."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "videomae_jax"
# Each room, from the bottom to the top, and what it may import of the others. Modules at the top
# level of the package are rooms of one file.
ROOMS = {
    "errors": set(),
    "host": set(),
    "drawing": set(),
    "progress": set(),
    "paths": {"errors"},
    "config": {"errors"},
    "metrics": {"errors"},
    "detection_metrics": {"errors", "metrics"},
    "models": {"errors"},
    "augment": {"errors"},
    "data": {"errors", "host", "drawing", "paths"},
    "devices": {"errors"},
    "pictures": {"errors", "paths", "models", "data"},
    "tasks": {
        *("errors", "paths", "config", "models", "augment", "data", "devices"),
        *("metrics", "detection_metrics", "pictures"),
    },
}
ROOMS["inference"] = {"tasks", "progress", "host", "drawing"} | ROOMS["tasks"]
ROOMS["training"] = {"inference"} | ROOMS["inference"]
ROOMS["interop"] = {"training"} | ROOMS["training"]
ROOMS["api"] = {"interop"} | ROOMS["interop"]
ROOMS["diagnostics"] = {"interop"} | ROOMS["interop"]
ROOMS["commands"] = {"diagnostics"} | ROOMS["diagnostics"]
ROOMS["cli"] = {"errors", "commands"}
ROOMS["__init__"] = {"api"}
# Heavy or replaceable libraries, and the only files that know them.
ONLY_IN = {
    "tensorflow": {"data/host_tensorflow.py"},
    "tensorflow_datasets": {"data/tfds.py", "data/pack.py"},
    "clu": {"training/monitor.py"},
    "orbax": {"training/checkpoint.py"},
    "flax": {"models"},
    "av": {"data/decode.py", "data/encode.py", "data/resize.py"},
    "decord": {"data/decoders.py"},
    "torchcodec": {"data/decoders.py"},
    "etils": {"paths.py"},
    "fsspec": {"paths.py"},
    "pyarrow": {"inference/tables.py"},
    "safetensors": {"interop/safetensors_file.py"},
    "huggingface_hub": {"interop/hub.py"},
    "jax2onnx": {"interop/onnx_file.py"},
    "onnx": {"interop/onnx_file.py"},
    "torch": {"diagnostics/peer_torch.py"},
    "transformers": {"diagnostics/peer_torch.py"},
}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@functools.cache
def imports(file):
    """Every module a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


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


def test_the_rooms_are_in_one_order():
    """A room imports only rooms above it in the table, so there are no circles between rooms."""
    rooms = list(ROOMS)
    for place, room in enumerate(rooms):
        assert ROOMS[room] <= set(rooms[:place]), room


def test_no_file_imports_itself_over_others():
    """At the top of files; an import inside a function may close a circle, and none does."""
    ahead = {
        str(file): {
            str(other)
            for other in FILES
            for name in imports(file)
            if name == ".".join(["videomae_jax", *other.with_suffix("").parts])
        }
        for file in FILES
    }
    while ahead:
        leaves = [file for file, others in ahead.items() if not others & ahead.keys()]
        assert leaves, f"circles among {sorted(ahead)}"
        for file in leaves:
            del ahead[file]


def test_data_knows_nothing_of_jax():
    """A machine that only packs and checks videos needs no JAX."""
    for file in FILES:
        if file.parts[0] == "data":
            assert not {name.split(".")[0] for name in imports(file)} & {"jax", "flax"}, file


LONGEST = 80  # lines of a function, without its docstring


def test_a_function_fits_on_a_screen_or_says_why_not():
    long = []
    for file in FILES:
        for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            said = ast.get_docstring(node) or ""
            code = node.end_lineno - node.lineno + 1 - said.count("\n") - 1
            if code > LONGEST and "one piece" not in said.lower():
                long.append(f"{file}: {node.name}, {code} lines")
    assert not long


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
from videomae_jax.diagnostics import stage_time, step_time, subprocesses
from videomae_jax.commands import benchmark
job = step_time.Job("tiny", "pretrain", 1, ())
assert step_time.random_batch(job, step_time.job_config(job))["video"].shape[0] == 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, timeout=120)
