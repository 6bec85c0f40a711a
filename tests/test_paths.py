"""Files and objects by the same functions."""

import io
import subprocess
import sys

import pytest

from videomae_jax import paths
from videomae_jax.errors import StorageError, StorageUnavailable, UserError


@pytest.fixture(params=["disk", "gcs", "s3"])
def folder(request, tmp_path):
    """The address of an empty folder."""
    if request.param == "disk":
        return str(tmp_path)
    return request.getfixturevalue(request.param).url


def test_what_is_written_is_found_and_read(folder):
    file = f"{folder}/sub/a b.txt"
    assert not paths.exists(file) and paths.names(f"{folder}/sub") == []
    paths.make_folder(f"{folder}/sub")
    paths.write_whole(file, "one")
    paths.write_whole(file, "three")
    assert paths.read_bytes(file) == b"three"
    assert paths.read_bytes(file, 1, 2) == b"hr" and paths.read_bytes(file, 3, 9) == b"ee"
    assert paths.size(file) == 5 and paths.modified(file) > 1e9
    assert paths.names(folder) == ["sub"] and paths.names(f"{folder}/sub") == ["a b.txt"]
    assert paths.is_folder(f"{folder}/sub") and not paths.is_folder(file)
    assert str(paths.as_path(folder) / "sub" / "a b.txt") == file
    paths.remove(file)
    paths.remove(file)
    assert not paths.exists(file)
    with pytest.raises(FileNotFoundError):
        paths.read_bytes(file)


def test_what_is_written_whole_appears_at_the_end_or_not_at_all(folder):
    paths.write_whole(f"{folder}/file", "old")
    with pytest.raises(ValueError), paths.to_write_whole(f"{folder}/file") as draft:
        draft.write_text("part")
        raise ValueError
    with paths.to_write_whole(f"{folder}/file") as draft:
        draft.write_text("new")
        assert paths.read_bytes(f"{folder}/file") == b"old"
    with pytest.raises(ValueError), paths.to_write_whole(f"{folder}/none") as draft:
        draft.mkdir()
        (draft / "a").write_text("part")
        raise ValueError
    with paths.to_write_whole(f"{folder}/sub") as draft:
        draft.mkdir()
        (draft / "a").write_text("1")
        assert not paths.exists(f"{folder}/sub")
    assert paths.names(folder) == ["file", "sub"]
    assert paths.read_bytes(f"{folder}/file") == b"new"
    assert paths.read_bytes(f"{folder}/sub/a") == b"1"


@pytest.mark.parametrize("end", [b"", b"\r", b"\n", b"\r\n"])
def test_a_file_keeps_its_last_byte(folder, end):
    paths.write_whole(f"{folder}/file", b"1" + end)
    assert paths.read_bytes(f"{folder}/file") == b"1" + end


def test_one_of_two_creates_a_file(folder):
    assert paths.create(f"{folder}/lock", b"mine")
    assert not paths.create(f"{folder}/lock", b"theirs")
    assert paths.read_bytes(f"{folder}/lock") == b"mine"


def test_a_file_is_read_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(paths, "BLOCK", 64)
    data = bytes(range(256)) * 4
    paths.write_whole(f"{folder}/data", data)
    with paths.open_binary(f"{folder}/data") as file:
        assert file.read(10) == data[:10]
        assert file.seek(-7, io.SEEK_END) == 1017 and file.read() == data[-7:]
        assert file.seek(100) == 100 and file.read(300) == data[100:400]
        assert file.tell() == 400


def test_a_request_that_fails_for_a_while_is_repeated(bucket):
    paths.write_whole(f"{bucket.url}/a", b"1")
    bucket.faults.status, bucket.faults.left = 503, 1
    assert paths.read_bytes(f"{bucket.url}/a") == b"1"
    assert bucket.faults.left <= 0


def test_a_bucket_that_denies_is_one_line(bucket):
    bucket.faults.status = 403
    with pytest.raises(StorageError, match="access denied") as error:
        paths.write_whole(f"{bucket.url}/a", b"1")
    assert error.value.exit_code == 1 and "\n" not in str(error.value)


@pytest.mark.slow  # gcsfs repeats for half a minute
def test_a_bucket_that_stays_away_is_one_line(bucket, monkeypatch):
    monkeypatch.setattr(paths, "PATIENCE", 3.0)
    bucket.faults.status = 503
    with pytest.raises(StorageUnavailable, match="cannot be reached") as error:
        paths.write_whole(f"{bucket.url}/a", b"1")
    assert error.value.exit_code == 134 and "\n" not in str(error.value)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(paths.SCHEMES, "s3", ("no_such_module", "s3"))
    paths._open_scheme.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'videomae_jax\[s3\]'"):
        paths.exists("s3://bucket/a")


def test_a_local_path_needs_no_library():
    program = (
        "import sys; from videomae_jax import paths; paths.read_bytes(paths.as_path(sys.argv[1]));"
        "sys.exit(' '.join({'fsspec', 'etils', 'aiohttp'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", program, __file__], check=True)
