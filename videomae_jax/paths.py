"""Files on a disk and objects in a bucket (gs://, s3://), by the same functions.

A local path is opened as ever, without a library. A remote one goes through fsspec, which the
extras `gcs` and `s3` install with gcsfs and s3fs. A request that fails for a while is repeated for
about `PATIENCE` seconds; what remains is an error of one line: StorageError or StorageUnavailable.
"""

import errno
import functools
import importlib.util
import io
import logging
import os
import pathlib
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

from videomae_jax.errors import StorageError, StorageGone, StorageUnavailable, UserError

# The module that each scheme needs, and the extra that installs it.
SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# For so many seconds after its first failure a request is repeated. gcsfs and s3fs repeat it too,
# gcsfs for about 30 seconds.
PATIENCE = 60.0
# Seconds to connect, and of silence within an answer.
CONNECT, SILENCE = 10, 20
BLOCK = 1 << 20  # bytes that reading a remote file in pieces reads at once

# What a program may react to: the object or folder, not the service, is the cause.
_ABOUT_FILES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_DENIED = ("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED", "AccessDenied", "(403)")
_GONE = ("NOT_FOUND", "NoSuchBucket", "NoSuchKey", "(404)")
_UNAVAILABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED")
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3"}

# etils decides once, for the first address that it sees, which may be one of tensorflow-datasets.
# TensorFlow's own gs:// needs other credentials, and has no s3://.
os.environ["EPATH_USE_TF"] = "false"

AnyPath = str | os.PathLike[str]
Result = TypeVar("Result")


def is_remote(path: AnyPath) -> bool:
    """Return whether a path is the address of a bucket's object or folder."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def as_path(path: AnyPath) -> pathlib.Path:
    """Return a pathlib.Path, or its like for a bucket, etils.epath.Path.

    Use it to join and to take apart; the functions of this module repeat requests and explain
    errors, the methods of a remote path do not. Raises UserError where an extra is missing.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    _filesystem(path)  # configures what etils uses
    from etils import epath

    return cast(pathlib.Path, epath.Path(os.fspath(path)))


def read_bytes(path: AnyPath, offset: int = 0, size: int = -1) -> bytes:
    """Read a part of a file, fewer bytes at its end; size -1 is all."""
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    if size == 0:
        return b""
    if not offset and size < 0:
        return _request(path, lambda fs, key: fs.cat_file(key))
    end = None if size < 0 else offset + size

    def read(fs: Any, key: str) -> bytes:
        try:
            return fs.cat_file(key, start=offset, end=end)
        except Exception as error:  # has no class of its own
            if "satisfiable" in str(error).lower() or "InvalidRange" in str(error):
                return b""  # the object ends before the range
            raise

    return _request(path, read)


def write_whole(path: AnyPath, data: bytes | str) -> None:
    """Write a file so that no reader ever sees a part of it; text becomes UTF-8.

    Locally, the folder must exist.
    """
    raw = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        _put(path, raw, "overwrite")
        return
    with to_write_whole(path) as draft:
        draft.write_bytes(raw)


def create(path: AnyPath, data: bytes) -> bool:
    """Write a file that does not exist; return False, and write nothing, if it does.

    Of several processes that call it at once, one gets True: the bucket is asked to check
    (`ifGenerationMatch=0`, `If-None-Match: *`). The bytes must be the caller's alone.
    """
    try:
        if not is_remote(path):
            with open(path, "xb") as file:
                file.write(data)
        else:
            _put(path, data, "create")
    except FileExistsError:
        # A request whose answer was lost is repeated, and then meets its own object.
        return is_remote(path) and read_bytes(path) == data
    return True


def exists(path: AnyPath) -> bool:
    """Return whether a file, or a folder with something in it, exists."""
    if not is_remote(path):
        return os.path.exists(path)
    return _request(path, lambda fs, key: _kind(fs, key) is not None)


def is_folder(path: AnyPath) -> bool:
    """Return whether a path is a folder; in a bucket, whether objects begin with its name."""
    if not is_remote(path):
        return os.path.isdir(path)
    return _request(path, lambda fs, key: _kind(fs, key) == "directory")


def names(folder: AnyPath) -> list[str]:
    """Return the sorted names of the files and folders in a folder, [] if there is none."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def listed(fs: Any, key: str) -> list[str]:
        try:
            found = fs.ls(key, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        # An object whose name ends in a slash stands for the folder itself.
        inside = {name.rstrip("/") for name in found} - {key.rstrip("/")}
        return sorted(name.rpartition("/")[2] for name in inside)

    return _request(folder, listed)


def size(path: AnyPath) -> int:
    """Return the bytes of a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    return _request(path, lambda fs, key: int(fs.info(key, refresh=True)["size"]))


def modified(path: AnyPath) -> float:
    """Return when a file was last written, in seconds of the clock of its file server."""
    if not is_remote(path):
        return os.stat(path).st_mtime
    return _request(path, lambda fs, key: fs.modified(key).timestamp())


def make_folder(path: AnyPath) -> None:
    """Make a folder and those above it. A bucket has none, so nothing is made in it."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def remove(path: AnyPath) -> None:
    """Remove a file, if it exists."""
    try:
        if is_remote(path):
            _request(path, lambda fs, key: fs.rm_file(key))
        else:
            os.remove(path)
    except FileNotFoundError:
        pass


def open_binary(path: AnyPath) -> BinaryIO:
    """Open a file to read and seek; a remote one is read in blocks of `BLOCK` bytes."""
    if not is_remote(path):
        return open(path, "rb")
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(os.fspath(path)), BLOCK))


def move_folder(old: AnyPath, new: AnyPath) -> None:
    """Give a folder another name; in a bucket, copy its objects and then remove them."""
    if not is_remote(old):
        os.rename(old, new)
        return
    target = os.fspath(new).partition("://")[2]

    def move(fs: Any, key: str) -> None:
        for source in fs.find(key):
            fs.cp_file(source, target + source.removeprefix(key))
        fs.rm(key, recursive=True)

    _request(old, move)


def full_path(path: AnyPath) -> pathlib.Path:
    """Return an absolute path, with the home for ~; the address of a bucket as `as_path` does.

    Raises UserError for an address of another kind.
    """
    if is_remote(path):
        return as_path(path)
    if "://" in os.fspath(path):
        known = " and ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UserError(f"{path}: only {known} addresses are known: copy it to a disk")
    return pathlib.Path(path).expanduser().absolute()


def join(folder: AnyPath, path: str) -> str:
    """Return the path of a file in a folder; one that is absolute, or an address, stays."""
    if is_remote(path):
        return path
    joined = os.path.join(folder, path)
    if not is_remote(joined):
        return joined
    scheme, _, key = joined.partition("://")
    return f"{scheme}://{posixpath.normpath(key)}"  # a bucket has no ".."


def find(folder: AnyPath) -> list[str]:
    """Return the sorted names of all objects below a folder of a bucket, relative to it.

    One listing, which has 1,000 objects in each answer.
    """

    def listed(fs: Any, key: str) -> list[str]:
        prefix = f"{key.rstrip('/')}/"
        found = (name.removeprefix(prefix) for name in fs.find(prefix) if name.startswith(prefix))
        return sorted(name for name in found if name and not name.endswith("/"))

    return _request(folder, listed)


def remove_folder(path: AnyPath) -> None:
    """Remove a folder and all that is in it."""
    if is_remote(path):
        _request(path, lambda fs, key: fs.rm(key, recursive=True))
    else:
        shutil.rmtree(path)


@contextmanager
def to_write(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yield where to write a file, or a folder of files: locally, `path` itself.

    For a bucket it is a path of that name on the local disk, from which the files are copied to
    `path` after the body, unless that raises.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="videomae-") as folder:
        local = pathlib.Path(folder, as_path(path).name)
        yield local
        for file in sorted(local.rglob("*")) if local.is_dir() else [local]:
            if file.is_file():
                name = file.relative_to(local).as_posix() if file != local else ""
                target = f"{os.fspath(path).rstrip('/')}/{name}".rstrip("/")
                _request(target, functools.partial(_upload, file))


@contextmanager
def to_write_whole(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yield where to write a file or folder that no reader sees before it is complete.

    It is a draft in the same folder, which gets the name of `path` after the body and replaces a
    file of that name. If the body raises, the draft is removed. For a bucket as `to_write`.
    """
    with to_write(path) as final:
        draft = final.with_name(f".{final.name}.{os.getpid()}.new")
        try:
            yield draft
            os.replace(draft, final)
        finally:
            if draft.is_dir():
                shutil.rmtree(draft)
            draft.unlink(missing_ok=True)


@contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Make a UserError of one line of an OSError of the body, which writes `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {os.fspath(path)}: {reason}") from None


def explain(error: BaseException, path: AnyPath) -> UserError | None:
    """Return an error of a bucket as one line, None where the bucket is not its cause.

    Knows those of fsspec's file systems, and of tensorstore, whose text says the status.
    """
    bucket = os.fspath(path).partition("://")[2].partition("/")[0]
    found: BaseException | None = error
    while found is not None:
        library = type(found).__module__.partition(".")[0] in _LIBRARIES
        if library or isinstance(found, UserError) or "tensorstore" in str(found):
            return _in_one_line(found, path)
        if isinstance(found, OSError) and bucket in str(found):
            return _in_one_line(found, path)
        found = found.__cause__
    return None


def _in_one_line(error: BaseException, path: AnyPath) -> UserError | None:
    """Return an error that a bucket caused, by its kind or by the words that say its status."""
    if isinstance(error, UserError):
        return error
    kind, where = type(error).__name__, os.fspath(path)
    # Up to the description of the array that tensorstore opened.
    text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0] or kind
    text = "no answer" if kind == "FSTimeoutError" else text
    denied = isinstance(error, PermissionError) or kind.endswith("CredentialsError")
    if denied or getattr(error, "code", None) in (401, 403) or any(w in text for w in _DENIED):
        return StorageError(f"{where}: access denied: {text[:200]}; check the credentials")
    if isinstance(error, FileNotFoundError) or any(word in text for word in _GONE):
        return StorageGone(f"{where}: not found: {text[:200]}")
    library = type(error).__module__.partition(".")[0] in _LIBRARIES
    if library or isinstance(error, OSError) or any(word in text for word in _UNAVAILABLE):
        return StorageUnavailable(f"{where}: the bucket cannot be reached: {text[:200]}")
    return None


class _RemoteFile(io.RawIOBase):
    """A remote file whose every read is a request of its own, so that it can be repeated."""

    def __init__(self, path: str):
        self._path, self._size, self._place = path, size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = min(len(view), self._size - self._place)
        if count <= 0:
            return 0
        data = read_bytes(self._path, self._place, count)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)


def _put(path: AnyPath, data: bytes, mode: str) -> None:
    try:
        _request(path, lambda fs, key: fs.pipe_file(key, data, mode=mode))
    except FileNotFoundError:  # a bucket has no folders that could be missing
        raise StorageGone(f"{os.fspath(path)}: its bucket does not exist") from None


def _request(path: AnyPath, call: Callable[[Any, str], Result]) -> Result:
    """Return `call(file system, key)`, repeated while its failure may pass."""
    filesystem, key = _filesystem(path), os.fspath(path).partition("://")[2]
    start, pause = time.monotonic(), 1.0
    while True:
        try:
            return call(filesystem, key)
        except _ABOUT_FILES:
            raise
        except Exception as error:  # every library has its own
            problem = _in_one_line(error, path)
            if problem is None:
                raise
            if not isinstance(problem, StorageUnavailable):
                raise problem from None
            if time.monotonic() - start > PATIENCE:
                raise problem from error
        time.sleep(pause)
        pause = min(2 * pause, 16.0)


def _upload(file: pathlib.Path, filesystem: Any, key: str) -> None:
    filesystem.put_file(str(file), key)


def _kind(filesystem: Any, key: str) -> str | None:
    """Return "file", "directory", or None for what does not exist."""
    try:
        return filesystem.info(key, refresh=True)["type"]
    except FileNotFoundError:
        return None


def _filesystem(path: AnyPath) -> Any:
    """Return fsspec's file system for a remote path."""
    return _open_scheme(os.fspath(path).partition("://")[0])


@functools.cache  # fsspec would make one for each thread
def _open_scheme(scheme: str) -> Any:
    module, extra = SCHEMES[scheme]
    # Off: it asks a second service, by gRPC, what kind of bucket each one is.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{scheme}:// needs {module}: pip install 'videomae_jax[{extra}]'")
    import fsspec

    logging.getLogger(module).setLevel(logging.CRITICAL)  # it prints tracebacks of retries
    # Other processes write too, so no listing may be remembered.
    settings: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs":
        import aiohttp

        wait = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        settings["requests_timeout"] = wait  # gcsfs does not use that of its session
    else:
        from botocore import handlers

        # It waits without a limit for the permission to send what it writes ("100 Continue").
        waits = handlers.add_expect_header
        handlers.BUILTIN_HANDLERS[:] = [h for h in handlers.BUILTIN_HANDLERS if h[1] is not waits]
        times = {"connect_timeout": CONNECT, "read_timeout": SILENCE}
        settings["config_kwargs"] = {**times, "retries": {"max_attempts": 2}}
    # By its configuration, so that etils' own file system has them too.
    fsspec.config.conf.setdefault({"gs": "gcs"}.get(scheme, scheme), settings)
    return fsspec.filesystem({"gs": "gcs"}.get(scheme, scheme))
