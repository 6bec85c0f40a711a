"""Pickle files of boxes, as mmaction2 writes them: {"video,second": float [n, 4 or 5]}.

A pickle can call any function. This reader accepts only the names that NumPy uses in a pickle of an
array, and replaces even these by classes of this file.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from videomae_jax.data.box_table import Table
from videomae_jax.errors import UserError
from videomae_jax.paths import read_bytes

TYPES = ("f2", "f4", "f8", "i4", "i8")  # of arrays, little-endian


class _Type:
    """A dtype in a pickle: its name and, if set, its byte order."""

    def __init__(self, name: str, *_: object):
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    """An array in a pickle: (version, shape, dtype, whether columns come first, bytes)."""

    state: tuple = ()

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def read(self) -> np.ndarray:
        """Return the numbers, float64 [n, columns]. Raises ValueError for anything else."""
        _, shape, dtype, by_column, data = self.state
        if dtype.name not in TYPES or dtype.order not in "<=|" or len(shape) != 2:
            raise ValueError(f"an array of shape {shape} and type {dtype.name}")
        raw = data.encode("latin1") if isinstance(data, str) else data
        values = np.frombuffer(raw, f"<{dtype.name}").astype(float)
        return values.reshape(shape[::-1]).T if by_column else values.reshape(shape)


class _Buffer(_Array):
    """An array in a pickle of protocol 5: (bytes, dtype, shape, order of the axes)."""

    def __init__(self, data: bytes, dtype: _Type, shape: tuple, order: str):
        self.state = 1, shape, dtype, order == "F", data


class _Bytes(bytes):
    """Bytes that a protocol without bytes writes as text and its encoding."""

    def __new__(cls, text: str, encoding: str) -> "_Bytes":
        if encoding != "latin1":
            raise ValueError(f"bytes in {encoding}")
        return super().__new__(cls, text.encode("latin1"))


NAMES: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _Buffer,
    "numpy._core.numeric._frombuffer": _Buffer,
    "_codecs.encode": _Bytes,
}


class _Unpickler(pickle.Unpickler):
    """Reads plain containers, text, numbers, and arrays of them."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name. Raises pickle.UnpicklingError for any other name."""
        found = NAMES.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}"[:100] + ", which is not allowed and was not run"
            )
        return found


def read_pickle(path: Path) -> Table:
    """Read the boxes of a pickle. Raises UserError for one that holds anything else."""
    data = read_bytes(path)
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        names, seconds, boxes = [], [], []
        for key, value in content.items():
            name, _, second = key.rpartition(",")
            array = value.read()
            if array.shape[1] not in (4, 5):
                raise ValueError(f"{array.shape[1]} columns, not 4 or 5")
            names += [name] * len(array)
            seconds += [float(second)] * len(array)
            boxes.append(array)
        table = np.concatenate(boxes)
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(
            f"{path} is not a pickle of boxes, {{'video,second': array [n, 5]}}: {error}"
        ) from None
    return Table(
        kind="pickle of proposals",
        lines=np.arange(1, len(table) + 1),
        names=names,
        moments=np.array(seconds, float),
        corners=table[:, :4],
        actions=[""] * len(table),
        persons=np.full(len(table), -1),
        scores=table[:, 4] if table.shape[1] == 5 else None,
    )
