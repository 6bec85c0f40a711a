"""One run at a time in a work directory, and no dead one in the way of the next."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time

import pytest

from videomae_jax.errors import StorageUnavailable, UserError
from videomae_jax.training import lock
from videomae_jax.training.lock import lock_workdir


def held(folder, **changes):
    """Leave the lock of another process, with changes; returns its file."""
    with lock_workdir(folder):
        holder = json.loads((folder / lock.NAME).read_text())
    (folder / lock.NAME).write_text(json.dumps(holder | changes))
    return folder / lock.NAME


def test_a_second_run_is_refused_in_one_line_and_the_lock_is_released(tmp_path):
    with lock_workdir(tmp_path):
        with pytest.raises(UserError, match=r"in use by process \d+ on \S+ since \d{4}-") as said:
            with lock_workdir(tmp_path):
                pass
        assert "\n" not in str(said.value)
    with lock_workdir(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_an_outage_keeps_its_exit_code(tmp_path, monkeypatch):
    def stay_away(workdir):
        raise StorageUnavailable(f"{workdir}: the bucket cannot be reached: no answer")

    monkeypatch.setattr(lock, "lock_workdir", stay_away)
    with pytest.raises(StorageUnavailable), lock.only_run(str(tmp_path)):
        pass


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    """Such as exFAT, or a mounted bucket."""

    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    held(tmp_path, process="0")
    with lock_workdir(tmp_path):
        with pytest.raises(UserError, match="in use"), lock_workdir(tmp_path):
            pass


def test_a_killed_run_does_not_block_the_next(tmp_path):
    code = (
        "import os, sys; from videomae_jax.training.lock import lock_workdir\n"
        "with lock_workdir(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == -9 and (tmp_path / lock.NAME).exists()
    began = time.monotonic()
    with lock_workdir(tmp_path):
        pass
    assert time.monotonic() - began < 5


def test_a_later_process_of_the_same_id_is_another(tmp_path):
    held(tmp_path, process="0")
    with lock_workdir(tmp_path):
        pass


def test_a_holder_on_another_machine_is_known_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.2)
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    file = held(tmp_path, machine="elsewhere", host="elsewhere")
    ended = threading.Event()
    beating = threading.Thread(target=lock._beat, args=(file, ended))
    beating.start()
    with pytest.raises(UserError, match="on elsewhere"):
        with lock_workdir(tmp_path):
            pass
    ended.set()
    beating.join()
    began = time.monotonic()
    with lock_workdir(tmp_path):  # silent from here on
        assert 1 < time.monotonic() - began < 10


def test_a_damaged_lock_counts_as_silent_after_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.3)
    (tmp_path / lock.NAME).write_text("half a l")
    with lock_workdir(tmp_path):
        pass


def hold(folder, won, ready, ended):
    ready.wait()
    try:
        with lock_workdir(folder):
            won.put(1)
            ended.wait(100)
    except UserError:
        won.put(0)


def test_of_many_that_find_a_dead_one_exactly_one_wins(tmp_path):
    held(tmp_path, process="0")
    context = multiprocessing.get_context("spawn")
    won, ready, ended = context.Queue(), context.Event(), context.Event()
    several = [context.Process(target=hold, args=(tmp_path, won, ready, ended)) for _ in range(4)]
    for process in several:
        process.start()
    ready.set()
    assert sum(won.get(timeout=100) for _ in several) == 1
    ended.set()
    for process in several:
        process.join()
