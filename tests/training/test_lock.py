"""One run at a time in a work directory, and no dead one in the way of the next."""

import json
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


def contend(folder, count):
    """Let so many threads take the lock of a folder at once; return 1 or 0 for each."""
    won, ready, done = [], threading.Barrier(count), threading.Event()

    def take():
        ready.wait()
        try:
            with lock_workdir(folder):
                won.append(1)
                done.wait(60)
        except UserError:
            won.append(0)

    several = [threading.Thread(target=take) for _ in range(count)]
    for thread in several:
        thread.start()
    while len(won) < count:
        time.sleep(0.01)
    done.set()
    for thread in several:
        thread.join()
    return won


def test_of_many_that_find_a_dead_one_exactly_one_wins(tmp_path):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        held(folder, process="0")
        assert sum(contend(folder, 4)) == 1


def test_what_is_left_of_a_process_that_died_while_it_took_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    held(tmp_path, process="0")
    (tmp_path / f"{lock.NAME}.claim").touch()
    began = time.monotonic()
    with lock_workdir(tmp_path):
        assert 0.4 < time.monotonic() - began < 5
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
