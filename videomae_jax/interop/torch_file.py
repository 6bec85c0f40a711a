"""Read and write PyTorch's .pth files without PyTorch, and without running any of their code.

A .pth is a zip of one pickle and raw storages. Python's unpickler calls the functions that a
pickle names; the interpreter of opcodes here can only build plain containers and views of the
file. Any other name in a pickle is an error.
"""

import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from videomae_jax.errors import UserError

STORAGES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
ORDERED_DICT, DEFAULT_DICT = "collections.OrderedDict", "collections.defaultdict"
TORCH_SIZE = "torch.Size"  # read as a tuple
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
# Objects that training scripts save with the weights: read as `Inert`, with any arguments.
# The schedule of the reference stores its rates as NumPy scalars. The builtins are the types of a
# defaultdict's values.
_BUILTINS = ("bool", "dict", "float", "int", "list", "set", "str", "tuple")
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
INERT = {
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",
    "collections.Counter",
    "torch.device",
    *(f"{module}.{name}" for module in ("__builtin__", "builtins") for name in _BUILTINS),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
}
# Names that stand alone: a dtype of torch is no call.
TORCH_DTYPES = {
    *("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64", "torch.bool"),
    *("torch.uint8", "torch.int8", "torch.int16", "torch.int32", "torch.int64"),
}
ALLOWED = {ORDERED_DICT, DEFAULT_DICT, TORCH_SIZE, TENSOR, PARAMETER}
ALLOWED |= {*STORAGES, *INERT, *TORCH_DTYPES}

MAX_PICKLE = 16 << 20  # bytes; the pickle of a ViT-g with its optimizer has about 2 MB
MAX_OPCODES = 1_000_000  # ... and 0.1 million opcodes; each can take 64 bytes of memory
MAX_DIRECTORY = 8 << 20  # bytes; one storage takes about 100
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of torch.save before 1.6


class Inert:
    """A placeholder for an object of a pickle that is not needed; name: of what was not called."""

    def __init__(self, name: str):
        self.name = name


class MappedTensor:
    """A tensor of a mapped file, copied each time `np.asarray` is called on it.

    After each copy the pages of the file are released; the views of `map_torch` would keep the
    whole file in memory next to the converted parameters.
    """

    def __init__(self, view: np.ndarray, data: mmap.mmap):
        self._view, self._data = view, data
        self.shape, self.dtype = view.shape, view.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.array(self._view, dtype)
        self._data.madvise(mmap.MADV_DONTNEED)
        return array


class _Name(str):
    """The name of a global in a pickle, as opposed to a string."""


class _Storage(NamedTuple):
    values: np.ndarray  # 1-D, a view of the file


class _Refused(Exception):
    """A problem of a file; `map_torch` adds the path."""


def map_torch(path: str | Path) -> tuple[Any, mmap.mmap]:
    """Read a file written by torch.save: dicts, lists, numbers, and tensors as NumPy arrays.

    Returns the content and the map of the file. The arrays are read-only views of the map.
    Raises UserError for a file that is damaged, not a zip, or names anything not allowed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(LEGACY))
            if not head.startswith(b"PK"):
                raise _Refused(_not_a_zip(head))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tree = _read_archive(memoryview(data))
        # The checksums have read all of it into memory.
        data.madvise(mmap.MADV_DONTNEED)
        return tree, data
    except _Refused as problem:
        # Names in a file may be long and have line breaks; the message is one line.
        raise UserError(f"{path}: {' '.join(str(problem).split())[:400]}") from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None


def _not_a_zip(head: bytes) -> str:
    if head == LEGACY:
        return (
            "has the format of torch.save before 2020; write it again with torch: "
            "torch.save(torch.load(path, weights_only=True), new_path)"
        )
    return "is not a PyTorch file: it does not begin like a zip; nor is it safetensors"


def _read_archive(data: memoryview) -> Any:
    try:
        entries = _read_directory(data)
    except DAMAGED as problem:
        raise _Refused(f"its zip directory is damaged ({problem})") from None
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Refused(f"is a zip with {len(roots)} data.pkl, not a PyTorch file with one")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise _Refused("is a TorchScript program, not weights; save its state_dict() instead")
    if bytes(entries.get(f"{root}byteorder", b"little")) != b"little":
        raise _Refused("holds big-endian numbers; write it again on a little-endian machine")

    def storage(kind: Any, key: Any, count: Any) -> _Storage:
        # Print only strings: the text of nested tuples can be exponentially long.
        if not isinstance(kind, _Name) or kind not in STORAGES or not isinstance(key, str):
            raise _Refused("it holds a storage of unknown kind")
        name, dtype = f"{root}data/{key}", STORAGES[kind]
        if not _is_size(count) or name not in entries:
            raise _Refused(f"its storage {key!r} is missing or has no size")
        raw = entries[name]
        if count * dtype.itemsize > len(raw):
            raise _Refused(f"its storage {key!r} has {len(raw)} bytes, not {count} {dtype}")
        return _Storage(np.frombuffer(raw, dtype, count) if count else np.empty(0, dtype))

    try:
        return _run_pickle(bytes(entries[f"{root}data.pkl"]), storage)
    except DAMAGED as problem:
        raise _Refused(f"its pickle is damaged ({problem})") from None


def _read_directory(data: memoryview) -> dict[str, memoryview]:
    """Return the contents of a zip by name, after checking every checksum.

    `zipfile` would copy them, and allocate memory before it knows how much is there.
    """
    if len(data) < 22 or data[-22:-18] != b"PK\5\6":
        raise _Refused("is cut short: its zip has no end")
    *_, count, size, start, _ = struct.unpack_from("<4s4H2LH", data, len(data) - 22)
    if len(data) >= 42 and data[-42:-38] == b"PK\6\7":
        (at,) = struct.unpack_from("<Q", data, len(data) - 34)
        signature, *_, count, size, start = struct.unpack_from("<4sQ2H2L4Q", data, at)
        if signature != b"PK\6\6":
            raise ValueError("no zip64 record")
    if size > MAX_DIRECTORY or start + size > len(data):
        raise ValueError(f"{size} bytes at {start}")

    entries: dict[str, memoryview] = {}
    at, end = start, start + size
    remaining = len(data)
    for _ in range(count):
        if at >= end:
            raise ValueError(f"fewer entries than {count}")
        signature, *fields = struct.unpack_from("<4s6H3L5H2L", data, at)
        _, _, flags, method, _, _, crc, packed, size, names, extras, comments, *_, offset = fields
        name = bytes(data[at + 46 : at + 46 + names]).decode()
        extra = bytes(data[at + 46 + names : at + 46 + names + extras])
        size, packed, offset = _widen(extra, size, packed, offset)
        at += 46 + names + extras + comments
        local, *_, local_names, local_extras = struct.unpack_from("<4s5H3L2H", data, offset)
        first = offset + 30 + local_names + local_extras
        if signature != b"PK\1\2" or local != b"PK\3\4" or name in entries:
            raise ValueError(f"entry {len(entries)}, {name!r}")
        if method or flags & 1 or packed != size:
            raise _Refused(
                f"{name!r} in it is compressed or encrypted, which torch.save never does"
            )
        # Overlapping entries could make the checksums of a small file take hours.
        remaining -= size
        if remaining < 0 or first + size > start:
            raise _Refused(f"is cut short: {name!r} reaches beyond its end")
        entries[name] = data[first : first + size]
        if zlib.crc32(entries[name]) != crc:
            raise _Refused(
                f"is damaged: the checksum of {name!r} is wrong; download the file again"
            )
    return entries


def _widen(extra: bytes, *fields: int) -> list[int]:
    """Replace the fields that exceed 32 bits by those of the zip64 extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + size]
        extra = extra[4 + size :]
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
    return [next(values, field) if field == 0xFFFFFFFF else field for field in fields]


def _run_pickle(program: bytes, storage: Callable[[Any, Any, Any], _Storage]) -> Any:
    """Interpret a pickle opcode by opcode, without importing or calling anything.

    storage: returns the storage of a (kind, key, count). One piece, though long: a flat table of
    opcodes.
    """
    if len(program) > MAX_PICKLE:
        raise _Refused(f"its pickle has {len(program)} bytes, weights need less than {MAX_PICKLE}")
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}

    def pop_mark() -> list:
        nonlocal stack
        taken, stack = stack, marks.pop()
        return taken

    for number, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(program))):
        if number > MAX_OPCODES:
            raise _Refused(f"its pickle has more than {MAX_OPCODES} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(stack)
                stack = []
            case "POP":
                stack.pop()
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                stack.append(argument)
            case "FLOAT" | "BINFLOAT" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if len(stack) < count:
                    raise IndexError("stack underflow")
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                taken = pop_mark()
                stack.append(tuple(taken))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "LIST":
                taken = pop_mark()
                stack.append(taken)
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                taken = pop_mark()
                _extend(stack[-1], taken)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                taken = pop_mark()
                stack.append(_update({}, taken))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key, value])
            case "SETITEMS":
                taken = pop_mark()
                _update(stack[-1], taken)
            case "GLOBAL":
                stack.append(_allow(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise ValueError("STACK_GLOBAL")
                stack.append(_allow(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_build(name, arguments))
            case "BUILD":
                stack.pop()
                # The attributes of an OrderedDict (torch's _metadata) or of an `Inert`.
                if not isinstance(stack[-1], dict | Inert):
                    raise ValueError("BUILD")
            case "BINPERSID":
                kind, *reference = stack.pop()
                if kind != "storage" or len(reference) != 4:
                    raise ValueError("persistent id")
                stack.append(storage(reference[0], reference[1], reference[3]))
            case _:
                raise _Refused(
                    f"its pickle uses the opcode {opcode.name}, which weights never need"
                )
    raise ValueError("no STOP")


def _allow(name: str) -> _Name:
    if name not in ALLOWED:
        raise _Refused(
            f"its pickle names {name[:100]}, which is not allowed and was not run; "
            "save only tensors, or convert it to safetensors where it comes from"
        )
    return _Name(name)


def _build(name: Any, arguments: Any) -> Any:
    """Return the result of REDUCE for an allowed name."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is not a name")
    if name in INERT:
        return Inert(name)
    if name == DEFAULT_DICT:
        return {}
    if name == TORCH_SIZE and len(arguments) == 1 and isinstance(arguments[0], tuple):
        return arguments[0]
    if name == ORDERED_DICT:
        pairs = arguments[0] if arguments else []
        return _update({}, [item for pair in pairs for item in _pair(pair)])
    if name == PARAMETER and arguments and isinstance(arguments[0], np.ndarray):
        return arguments[0]
    if name == TENSOR and len(arguments) in (6, 7) and isinstance(arguments[0], _Storage):
        return _view(*arguments[:4])
    raise ValueError(f"{name} with {len(arguments)} arguments")


def _view(storage: _Storage, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """Return a strided view, after checking that it stays inside its storage."""
    count = len(storage.values)
    sizes = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not sizes or len(shape) > 8 or not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError("a tensor with an impossible shape")
    if 0 in shape:
        return np.empty(shape, storage.values.dtype)
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    # The second condition: with a stride of 0, one number could have the shape of a terabyte.
    if last >= count or math.prod(shape) > count:
        raise _Refused(
            f"a tensor of shape {shape}, strides {strides}, offset {offset} does not fit its "
            f"storage of {count} numbers"
        )
    steps = [step * storage.values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage.values[offset:], shape, steps, writeable=False)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _pair(pair: Any) -> Any:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError("a dict of something other than pairs")
    return pair


def _extend(target: Any, items: list) -> None:
    if not isinstance(target, list | Inert):
        raise ValueError("an append to something that is not a list")
    if isinstance(target, list):
        target.extend(items)


def _update(target: Any, items: list) -> Any:
    """Set items [key, value, key, value, ...] of a dict."""
    if not isinstance(target, dict | Inert) or len(items) % 2:
        raise ValueError("items of something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # No tuples: hashing nested ones takes exponential time.
        if not isinstance(key, str | int | float | bytes | None):
            raise ValueError(f"a {type(key).__name__} as a key")
        if isinstance(target, dict):
            target[key] = value
    return target


def write_torch(path: str | Path, tree: dict[str, Any]) -> None:
    """Write nested dicts of arrays as a .pth that torch.load(weights_only=True) opens."""
    arrays: list[np.ndarray] = []
    program = b"\x80\x02" + _pickle(tree, arrays) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, "archive/data.pkl", program)
        _write_entry(archive, "archive/byteorder", b"little")
        for number, array in enumerate(arrays):
            _write_entry(archive, f"archive/data/{number}", array.reshape(-1).view(np.uint8).data)
        _write_entry(archive, "archive/version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    # torch.load(mmap=True) needs storages aligned to 64 bytes; in a zip an extra field pads.
    entry = zipfile.ZipInfo(name)  # dated 1980: the same weights give the same file
    assert archive.fp  # open
    padding = -(archive.fp.tell() + 30 + len(name.encode()) + 4) % 64
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(entry, content)


def _pickle(node: Any, arrays: list[np.ndarray]) -> bytes:
    """Pickle a node in protocol 2; its arrays are appended to `arrays` and referred to."""
    if isinstance(node, dict):
        items = [_pickle(key, arrays) + _pickle(value, arrays) for key, value in node.items()]
        return b"}(" + b"".join(items) + b"u"
    if isinstance(node, str):
        return b"X" + struct.pack("<L", len(node.encode())) + node.encode()
    if isinstance(node, bool):
        return b"\x88" if node else b"\x89"
    if isinstance(node, int):
        number = pickle.encode_long(node)
        return b"\x8a" + bytes([len(number)]) + number
    if isinstance(node, tuple):
        return b"(" + b"".join(_pickle(item, arrays) for item in node) + b"t"
    array = np.asarray(node, order="C")
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    if array.dtype not in kinds:
        raise UserError(f"a .pth cannot hold {array.dtype}: use one of {[*map(str, kinds)]}")
    arrays.append(array)
    reference = b"(" + b"".join(
        [
            _pickle("storage", arrays),
            _global(kinds[array.dtype]),
            _pickle(str(len(arrays) - 1), arrays),
            _pickle("cpu", arrays),
            _pickle(array.size, arrays),
        ]
    )
    strides = tuple(step // array.itemsize for step in array.strides)
    layout = [_pickle(item, arrays) for item in (0, array.shape, strides, False)]
    hooks = _global(ORDERED_DICT) + b")R"
    return _global(TENSOR) + b"(" + reference + b"tQ" + b"".join(layout) + hooks + b"tR"


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()
