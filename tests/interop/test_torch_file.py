"""Reading .pth files: those of torch.save, damaged ones and hostile ones."""

import argparse
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from golden import DATA, read_torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from videomae_jax.errors import UserError
from videomae_jax.interop import torch_file
from videomae_jax.interop.convert import find_tensors, to_native
from videomae_jax.interop.safetensors_file import read_safetensors
from videomae_jax.interop.torch_file import Inert, write_torch

# Of the same weights as NumPy stored them beside the original's outputs: names and bytes.
DIGESTS = {
    "pretrain_tiny": "d9fdc60dfb3cbf53e99c3eb6d8cf76e981e1f747ec17597fc561dbcee451655d",
    "finetune_tiny_deepspeed": "ed794693f2556885be291e3e90a14eeeb313e269c15b995139cb6adba51dd0e8",
}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]


@pytest.mark.parametrize("name", DIGESTS)
def test_tensors_of_released_files_are_exact(name):
    tree = read_torch(DATA / f"{name}.pth")
    tensors, _ = find_tensors(tree, source=name)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].tobytes())
    assert digest.hexdigest() == DIGESTS[name]
    assert isinstance(tree["args"], Inert)


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_tensors_come_back_exact(tmp_path, dtype):
    arrays = {
        "matrix": np.arange(12).reshape(3, 4).astype(dtype),
        "transposed": np.arange(12).reshape(3, 4).astype(dtype).T,
        "scalar": np.ones([], dtype),
        "empty": np.zeros([0, 3], dtype),
    }
    write_torch(tmp_path / "x.pth", {"model": arrays, "epoch": 3, "best": {"name": "é"}})
    tree = read_torch(tmp_path / "x.pth")
    assert tree["epoch"] == 3 and tree["best"] == {"name": "é"}
    for key, array in arrays.items():
        assert tree["model"][key].dtype == array.dtype
        assert np.array_equal(tree["model"][key], array)


# Pickles as torch.save makes them, with storages by reference.


class _Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tensor(*, shape, strides, offset=0, count=6, key="0"):
    """The opcodes of one float32 tensor in a storage of `count` numbers."""
    reference = b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + pickle.dumps(key, 2)[2:-1]
    reference += pickle.dumps("cpu", 2)[2:-1] + pickle.dumps(count, 2)[2:-1] + b"tQ"
    layout = b"".join(pickle.dumps(part, 2)[2:-1] for part in (offset, shape, strides, False))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + layout + b"ccollections\n"
    # completed by `whole`


def whole(opcodes):
    return b"\x80\x02" + opcodes + b"."


def build(opcodes):
    return whole(opcodes + b"OrderedDict\n)RtR")


def archive(path, program, storages=None, **others):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, content in ((storages or {"data/0": bytes(24)}) | others).items():
            file.writestr(f"archive/{name}", content)
    return path


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


CALLS = {
    "posix.system": _Call(os.system, "touch PWNED"),
    "builtins.eval": _Call(eval, "open('PWNED', 'w')"),
    "builtins.getattr": _Call(getattr, 1, "real"),
    "io.open": _Call(open, "PWNED", "w"),
    "_io.FileIO": _Call(io.FileIO, "PWNED", "w"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", CALLS)
def test_a_pickle_that_calls_anything_is_refused_by_name_and_not_run(
    tmp_path, monkeypatch, name, protocol
):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps({"model": CALLS[name]}, protocol)
    message = refusal(archive(tmp_path / "x.pth", program))
    # Protocol 2 has Python 2's name for it.
    assert (name.replace("builtins", "__builtin__") if protocol == 2 else name) in message
    assert not (tmp_path / "PWNED").exists()


def test_an_allowed_name_is_not_called_either(tmp_path):
    # A class in the place of a storage, and a storage in the place of a function.
    for opcodes in (b"cargparse\nNamespace\nQ", b"ctorch\nFloatStorage\n)R", b"X\1\0\0\0a)R"):
        assert "damaged" in refusal(archive(tmp_path / "x.pth", whole(opcodes)))


def test_plain_containers_and_placeholders_are_read(tmp_path):
    content = OrderedDict(
        args=argparse.Namespace(lr=1.0, names=["a"]), rate=np.float64(0.5), ids={3}, pair=(1, None)
    )
    for protocol in (2, 4):
        path = archive(tmp_path / "x.pth", pickle.dumps(content, protocol))
        tree = read_torch(path)
        assert tree["pair"] == (1, None)
        assert isinstance(tree["args"], Inert) and isinstance(tree["rate"], Inert)


class _Dtype:
    """Pickles as torch.float32 does: by its name alone."""

    def __reduce__(self):
        return "float32"


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_weights_are_read_as_inert_values(tmp_path, monkeypatch, protocol):
    torch = types.ModuleType("torch")
    size = type("Size", (tuple,), {"__reduce__": lambda self: (torch.Size, (tuple(self),))})
    torch.Size, torch.float32 = size, _Dtype()
    size.__module__ = _Dtype.__module__ = "torch"
    monkeypatch.setitem(sys.modules, "torch", torch)
    counts = defaultdict(list, {"a": [1, 2]})
    content = {
        "model": {"x": 1},
        "param_shapes": [OrderedDict(weight=torch.Size((2, 3)))],
        "counts": counts,
        "dtype": torch.float32,
        "output_dir": Path("/runs/a"),
        "args": argparse.Namespace(out=Path("/runs/b"), seen=Counter("aab")),
        "state": np.arange(3),
    }
    program = pickle.dumps(content, protocol)
    monkeypatch.delitem(sys.modules, "torch")  # nothing of it can be imported
    tree = read_torch(archive(tmp_path / "x.pth", program))
    assert tree["param_shapes"] == [{"weight": (2, 3)}]
    assert tree["counts"] == {"a": [1, 2]} and type(tree["counts"]) is dict
    assert tree["dtype"] == "torch.float32"
    assert tree["output_dir"].name.endswith("PosixPath")
    assert tree["args"].name == "argparse.Namespace"
    assert isinstance(tree["state"], Inert)


def test_views_of_one_storage_overlap_and_stride(tmp_path):
    storage = {"data/0": np.arange(6, dtype=np.float32).tobytes()}
    program = build(tensor(shape=(2, 2), strides=(1, 3), offset=1))
    array = read_torch(archive(tmp_path / "x.pth", program, storage))
    assert np.array_equal(array, [[1, 4], [2, 5]])
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "layout, cause",
    [
        (dict(shape=(7,), strides=(1,)), "does not fit its storage of 6"),
        (dict(shape=(2, 3), strides=(4, 1)), "does not fit"),
        (dict(shape=(6,), strides=(1,), offset=1), "does not fit"),
        (dict(shape=(1 << 40, 1 << 40), strides=(0, 0)), "does not fit"),
        (dict(shape=(6,), strides=(1,), offset=-1), "impossible shape"),
        (dict(shape=(6,), strides=(-1,), offset=5), "impossible shape"),
        (dict(shape=(2, 3), strides=(1,)), "impossible shape"),
        (dict(shape=(1,) * 70, strides=(1,) * 70), "impossible shape"),
        (dict(shape=(6.0,), strides=(1,)), "impossible shape"),
        (dict(shape=(6,), strides=(1,), count=7), "24 bytes, not 7"),
        (dict(shape=(6,), strides=(1,), count=1 << 60), "no size"),
        (dict(shape=(6,), strides=(1,), key="1"), "missing"),
        (dict(shape=(6,), strides=(1,), key="../data.pkl"), "missing"),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, layout, cause):
    assert cause in refusal(archive(tmp_path / "x.pth", build(tensor(**layout))))


def test_truncated_files_are_refused(tmp_path):
    content = (DATA / "finetune_tiny_deepspeed.pth").read_bytes()
    for size in (0, 1, 3, 30, 1000, len(content) // 2, len(content) - 22, len(content) - 1):
        (tmp_path / "x.pth").write_bytes(content[:size])
        refusal(tmp_path / "x.pth")


def test_a_flipped_bit_is_found_or_harmless(tmp_path):
    content = (DATA / "finetune_tiny_deepspeed.pth").read_bytes()
    right = to_native(read_torch(DATA / "finetune_tiny_deepspeed.pth")["module"], num_heads=3)[0]
    generator, found = np.random.default_rng(0), 0
    for position in generator.integers(0, len(content), 100):
        flipped = bytearray(content)
        flipped[position] ^= 1 << generator.integers(8)
        (tmp_path / "x.pth").write_bytes(flipped)
        try:
            tensors = read_torch(tmp_path / "x.pth")["module"]
        except UserError:
            found += 1
        else:
            params = to_native(tensors, num_heads=3)[0]
            assert np.array_equal(params["head"]["kernel"], right["head"]["kernel"])
    assert found > 80  # the others hit the padding between storages


def test_a_wrong_checksum_names_the_storage(tmp_path):
    content = bytearray((DATA / "pretrain_tiny.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    assert "the checksum of 'pretrain_tiny/data/" in refusal(tmp_path / "x.pth")


def test_other_forms_are_named(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(torch_file.LEGACY + bytes(100))
    assert "before 2020" in refusal(path)
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    assert "does not begin like a zip; nor is it safetensors" in refusal(path)
    archive(path, whole(b"}"), **{"constants.pkl": b""})
    assert "TorchScript" in refusal(path)
    archive(path, whole(b"}"), byteorder=b"big")
    assert "big-endian" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1000))
    assert "compressed" in refusal(path)
    with pytest.raises(UserError, match="cannot read"):
        read_torch(tmp_path / "none.pth")


def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    # A memo index that makes Python's own unpickler reserve 64 GB, a length beyond the file,
    # tuples whose text and hash take exponential time.
    doubled = b")q\0" + b"h\0h\0\x86q\0" * 60
    for opcodes in (
        b"}r\xff\xff\xff\xff." + b"j\xff\xff\xff\xff",
        b"\x8e" + struct.pack("<Q", 1 << 40),
        doubled + b"}h\0Ns",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + doubled + b"NNtQ",
        doubled + doubled + b"\x93",
    ):
        archive(path, whole(opcodes))
        try:
            read_torch(path)
        except UserError:
            pass
    monkeypatch.setattr(torch_file, "MAX_OPCODES", 100)
    assert "more than 100 opcodes" in refusal(archive(path, whole(b"}0" * 100)))


def test_entries_that_overlap_are_refused(tmp_path):
    # A hundred names for the same bytes: small on disk, long to check.
    body = bytes(1000)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(body), 1000, 1000, 0, 0)
    directory = b"".join(
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            20,
            20,
            0,
            0,
            0,
            0,
            zlib.crc32(body),
            1000,
            1000,
            3,
            0,
            0,
            0,
            0,
            0,
            0,
        )  # fmt: skip
        + f"{index:03}".encode()
        for index in range(100)
    )
    start = len(local + body)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 100, 100, len(directory), start, 0)
    (tmp_path / "x.pth").write_bytes(local + body + directory + end)
    assert "reaches beyond" in refusal(tmp_path / "x.pth")


# Fuzzing: whatever the bytes, the result is a value or a UserError.

FUZZ = settings(
    max_examples=150,
    deadline=2000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=6)
OPCODES = [bytes([code]) for code in b"(.0123FIJKLMNRSTUVXabcdeghijlopqrstu})]\x80\x85\x86\x87\x88"]
PIECES = st.sampled_from(
    [
        *OPCODES,
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"cargparse\nNamespace\n",
        b"ccollections\ndefaultdict\n",
        b"ctorch\nSize\n",
        b"cpathlib\nPosixPath\n",
        b"X\x07\0\0\0storage",
        b"X\x01\0\0\x000",
        b"K\x06",
        b"K\x00",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x81",
        b"\x8c\x05posix",
        b"\x8c\x06system",
        b"\x93",
    ]
)
SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, ml_dtypes.bfloat16)}


def edit(content, edits):
    content = bytearray(content)
    for position, patch in edits:
        at = int(position * len(content))
        content[at : at + len(patch)] = patch
    return bytes(content)


def survives(read, path):
    """Read every tensor of a file; anything but a UserError is a failure."""
    try:
        tree = read(path)
        for value in tree.values() if isinstance(tree, dict) else []:
            if hasattr(value, "shape"):
                np.asarray(value).astype(np.float32)
    except UserError:
        pass


@FUZZ
@given(edits=EDITS, cut=st.floats(0.5, 1))
def test_fuzzed_zips(tmp_path, edits, cut):
    path = tmp_path / "x.pth"
    write_torch(path, SMALL)
    content = path.read_bytes()
    path.write_bytes(edit(content, edits)[: int(cut * len(content)) or None])
    survives(read_torch, path)


@FUZZ
@given(edits=EDITS)
def test_fuzzed_pickles_in_sound_zips(tmp_path, edits):
    program = edit(build(tensor(shape=(2, 3), strides=(3, 1))), edits)
    survives(read_torch, archive(tmp_path / "x.pth", program))


@FUZZ
@given(pieces=st.lists(PIECES, max_size=30))
def test_fuzzed_opcodes(tmp_path, pieces):
    survives(read_torch, archive(tmp_path / "x.pth", whole(b"".join(pieces))))


@FUZZ
@given(edits=EDITS, cut=st.floats(0.5, 1))
def test_fuzzed_safetensors(tmp_path, edits, cut):
    path, content = tmp_path / "x.safetensors", save(SMALL)
    path.write_bytes(edit(content, edits)[: int(cut * len(content)) or None])
    survives(read_safetensors, path)


HEADERS = st.recursive(
    st.none() | st.integers(-9, 1 << 64) | st.sampled_from(["F32", "BF16", "F8_E4M3", "dtype"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]),
            inner,
            max_size=4,
        )
    ),
)


@FUZZ
@given(header=HEADERS, size=st.integers(-1, 40) | st.integers(0, (1 << 64) - 1))
def test_fuzzed_safetensors_headers(tmp_path, header, size):
    text = json.dumps(header).encode()
    length = len(text) if size < 0 else size
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + bytes(24))
    survives(read_safetensors, path)
