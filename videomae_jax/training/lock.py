"""Keep a second run out of a work directory.

The lock is a file, so it works on any shared file system. A holder that died on the same machine
is recognized by its process id. On another machine only its heartbeat can be seen, the
modification time of the lock, which is compared with that of a file that is written now: both
are times of the file server, so the clocks of the machines do not matter. The lock of a dead holder
is removed by one process at a time, the one that could create a second file, the claim.

An object of a bucket can be created by one process alone, but it cannot be removed on a condition
that every service knows. So there the locks are numbered objects, .lock/00000001 and
on, of which the newest counts. A lock is taken by creating the next number, and only where the
holder of the newest has said that it ended, or is dead. One whose heartbeat did not reach the
bucket for longer than `SILENCE` looks dead although it lives; it ends itself with the next one.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from videomae_jax.devices.distributed import everyone
from videomae_jax.errors import StorageError, StorageUnavailable, UserError
from videomae_jax.paths import create, is_remote, modified, names, read_bytes, remove, write_whole

NAME = ".lock"
# Seconds between two heartbeats, and of silence before a holder elsewhere counts as dead.
BEAT, SILENCE = 10.0, 60.0


@contextmanager
def only_run(workdir: str) -> Iterator[None]:
    """Hold the lock of a work directory for all processes of a run; the first one takes it."""
    with contextlib.ExitStack() as stack:
        problem: UserError | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(lock_workdir(workdir))
            except UserError as error:
                problem = error
        if not all(everyone(problem is None)):
            raise problem or UserError(f"{workdir} is in use: process 0 says by whom")
        yield


@contextmanager
def lock_workdir(workdir: str) -> Iterator[None]:
    """Hold the lock of a work directory inside the block.

    A lock that a dead process left behind is taken over: at once on the same machine, else after
    `SILENCE` seconds without a heartbeat. Raises UserError, naming the holder, for a live one.
    """
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "process": _birth(os.getpid()),
        "token": uuid.uuid4().hex,
    }
    with _lock_bucket(workdir, mine) if is_remote(workdir) else _lock_folder(workdir, mine):
        yield


@contextmanager
def _lock_folder(workdir: str, mine: dict) -> Iterator[None]:
    path = Path(workdir) / NAME
    while not _create(path, mine):
        with contextlib.suppress(FileNotFoundError):  # gone by now
            seen = modified(path)
            holder = _read(path)
            if not _take_over(path, holder, seen):
                raise _in_use(workdir, holder)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), name="lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):  # a disk that fails has ended the run
            if _read(path).get("token") == mine["token"]:
                path.unlink(missing_ok=True)


@contextmanager
def _lock_bucket(workdir: str, mine: dict) -> Iterator[None]:
    folder, content = f"{workdir}/{NAME}", json.dumps(mine).encode()
    while True:
        older = [name for name in names(folder) if name.isdigit()]
        newest = older[-1] if older else "0"
        if older and (holder := _read_object(f"{folder}/{newest}")) is not None:
            if _alive(f"{folder}/{newest}", holder):
                raise _in_use(workdir, holder)
        path = f"{folder}/{int(newest) + 1:08}"
        if create(path, content):
            # Another may have gone through this number and the next since `names`.
            if not _has_newer(path):
                break
            remove(path)
    for name in older:
        remove(f"{folder}/{name}")
    ended = threading.Event()
    beating = threading.Thread(
        target=_beat_object, args=(path, content, ended), name="lock", daemon=True
    )
    beating.start()
    try:
        yield
    except (StorageError, StorageUnavailable):
        ended.set()  # the bucket that failed cannot be told
        raise
    except BaseException:
        _release_object(path, mine, ended, beating)
        raise
    _release_object(path, mine, ended, beating)


def _release_object(path: str, mine: dict, ended: threading.Event, beating) -> None:
    ended.set()
    beating.join()
    # It stays: a number that was free again could be taken twice.
    write_whole(path, json.dumps(mine | {"released": True}))


def _read_object(path: str) -> dict | None:
    """Return who holds a lock in a bucket, None if it is gone."""
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        return None


def _alive(path: str, holder: dict) -> bool:
    """Return whether the holder of a lock in a bucket may still run."""
    if holder.get("released"):
        return False
    if holder.get("machine") == _machine():
        return _birth(holder["pid"]) == holder.get("process")
    return not _silent(path)


def _has_newer(path: str) -> bool:
    folder, _, own = path.rpartition("/")
    return any(name.isdigit() and name > own for name in names(folder))


def _beat_object(path: str, content: bytes, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(UserError):  # a bucket that fails ends the run elsewhere
            if _has_newer(path):
                print(f"videomae: another run took over {path.partition(NAME)[0]}", file=sys.stderr)
                os._exit(1)
            write_whole(path, content)


def _in_use(workdir: str, holder: dict) -> UserError:
    return UserError(
        f"{workdir} is in use by process {holder.get('pid')} on {holder.get('host')} "
        f"since {holder.get('started')}: use another --workdir, or end that run first"
    )


def _create(path: Path, mine: dict) -> bool:
    """Create the lock; return False if there is one."""
    try:
        # Only one process can create a file, on network file systems too. A link to a finished
        # draft would never be seen half written, but not every file system has links; and a half
        # written lock is read as a damaged one, which is waited for.
        with open(path, "x") as file:
            json.dump(mine, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict:
    """Return who holds the lock. Raises FileNotFoundError if it is gone."""
    for _ in range(20):
        try:
            holder = json.loads(path.read_text())
        except ValueError:
            time.sleep(0.05)  # half written, unless it is damaged
        else:
            return holder if isinstance(holder, dict) else {}
    return {}  # damaged: only its heartbeat counts


def _take_over(path: Path, holder: dict, seen: float) -> bool:
    """Remove the lock if its holder is dead; return whether to try again.

    seen: its modification time, from before the holder was read.
    """
    if holder.get("machine") == _machine():
        if _birth(holder["pid"]) == holder.get("process"):
            return False
    elif not _silent(path):
        return False
    # One process at a time removes a lock, and only the one that it saw: another may have taken
    # over meanwhile, and its new lock must not be gone for a moment.
    claim = path.with_name(f"{path.name}.claim")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        if _server_time(path) - modified(claim) >= SILENCE:  # left by a process that died
            claim.unlink()
        time.sleep(0.05)
        return True
    try:
        if _read(path) == holder and modified(path) == seen:
            path.unlink()
    finally:
        claim.unlink()
    return True


def _silent(path: Path | str) -> bool:
    """Wait for the next heartbeat; return whether there was none for `SILENCE` seconds."""
    first = None
    while True:
        now = _server_time(path)
        try:
            beat = modified(path)
        except FileNotFoundError:
            return True
        first = beat if first is None else first
        if beat != first:
            return False
        if now - beat >= SILENCE:
            return True
        time.sleep(min(1.0, BEAT / 4))


def _server_time(path: Path | str) -> float:
    """Return the time, in seconds, by the clock that sets the modification time of `path`."""
    probe = f"{path}.{uuid.uuid4().hex}"
    write_whole(probe, b"")
    now = modified(probe)
    remove(probe)
    return now


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk that fails ends the run elsewhere
            os.utime(path)


def _machine() -> str:
    """Return what is the same for all processes that can see each other's ids."""
    parts = [socket.gethostname()]
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):  # Linux alone has them
            parts.append(os.readlink(name) if name.endswith("pid") else Path(name).read_text())
    return " ".join(part.strip() for part in parts)


def _birth(pid: int) -> str | None:
    """Return what tells a process from a later one of the same id, None if there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        # The 22nd field, ticks since the machine started; the 2nd may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "alive"
