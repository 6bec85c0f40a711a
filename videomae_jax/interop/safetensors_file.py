"""Read and write safetensors files, also the several files of a large model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from videomae_jax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # of weights; others become void and are refused in the conversion
MAX_JSON = 4 << 20  # bytes of an index or a config; real ones have a few thousand


class StoredTensor:
    """A tensor of a file, read each time `np.asarray` is called on it."""

    def __init__(self, path: Path, file: Any, name: str):
        self._path, self._name = path, name
        view = file.get_slice(name)
        self.shape = tuple(view.get_shape())
        self.dtype = DTYPES.get(view.get_dtype(), np.dtype("V"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            # Opened each time: an open file keeps in memory all that was read of it.
            with safe_open(self._path, framework="np") as file:
                return np.asarray(file.get_tensor(self._name), dtype)
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise UserError(f"{self._path}: cannot read {self._name!r}: {problem}") from None


def read_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """Open a .safetensors file, or the files an index (.index.json) lists, as one dict."""
    path = Path(path)
    return _read_index(path) if path.suffix == ".json" else _open(path)


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as one file that transformers reads as a PyTorch model. Raises OSError."""
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        # transformers refuses a file without this metadata.
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as problem:  # which is no OSError, also of a full disk
        raise OSError(str(problem)) from None
    path.chmod(mode)  # save_file makes it readable by its owner only


def read_json(path: Path) -> dict:
    """Read a JSON object; raise UserError when the file holds anything else."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_JSON + 1)
        if len(content) > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON} bytes")
        tree = json.loads(content)
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not JSON: {problem}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, not an object")
    return tree


def indexed_files(path: Path) -> dict[Path, list[str]]:
    """Return the files that an index lists, and the tensors of each; all are in its folder."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{path} has no weight_map from tensor names to file names")
    files: dict[Path, list[str]] = {}
    for tensor, name in names.items():
        if Path(name).name != name or name == "..":
            raise UserError(f"{path} points to {name!r}, outside its own folder")
        files.setdefault(path.parent / name, []).append(tensor)
    return files


def _read_index(path: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file, listed in indexed_files(path).items():
        held = _open(file)
        absent = sorted(set(listed) - held.keys())
        twice = sorted(tensors.keys() & held.keys())
        if absent or twice:
            names, what = (absent, "does not hold") if absent else (twice, "holds a second")
            raise UserError(f"{file} {what} {', '.join(names)}, unlike {path.name}")
        tensors |= held
    return tensors


def _open(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="np") as file:
            return {name: StoredTensor(path, file, name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise UserError(f"{path} is not a valid safetensors file: {problem}") from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None
