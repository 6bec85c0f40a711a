"""What only Linux has is optional: everything runs where the system does not offer it."""

import ctypes
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from videos import write_video

from videomae_jax import cli, host
from videomae_jax.devices import host_memory
from videomae_jax.diagnostics import doctor, step_time
from videomae_jax.errors import UserError
from videomae_jax.host import count_cores
from videomae_jax.training.lock import lock_workdir

PACKAGE = Path(__file__).parent.parent / "videomae_jax"
LINUX = r"sched_\w+|posix_fadvise|malloc_trim|mallopt|/proc/|epoll|prctl|inotify|/dev/shm|os\.fork"
# The files that ask whether it is there; `mac` takes all of it away.
GUARDED = {
    "host.py",
    "devices/host_memory.py",
    "diagnostics/doctor.py",
    "diagnostics/feeding.py",
    "diagnostics/peer_torch.py",
    "diagnostics/step_time.py",
    "training/lock.py",
}


@pytest.fixture
def mac(monkeypatch):
    """Take away what macOS does not have."""
    for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    for owner, name in ((os.path, "exists"), (Path, "is_file")):
        monkeypatch.setattr(owner, name, _hide(getattr(owner, name), lambda: False))
    for owner, name in ((os, "readlink"), (Path, "read_text")):
        monkeypatch.setattr(owner, name, _hide(getattr(owner, name), _missing))


def _hide(function, instead):
    """Return a function that does not see the files of /proc."""

    def hidden(path, *args, **kwargs):
        return instead() if str(path).startswith("/proc/") else function(path, *args, **kwargs)

    return hidden


def _missing():
    raise FileNotFoundError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(4):
        write_video(folder / f"{index}.mp4", count=20, shift=17 * index)
    return folder


def test_nothing_else_is_for_linux_alone():
    files = {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in PACKAGE.rglob("*.py")}
    assert {name for name, text in files.items() if re.search(LINUX, text)} == GUARDED


def test_cores_are_counted_without_affinity(mac, monkeypatch):
    assert count_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1


def test_host_memory_without_glibc_and_proc(mac, tmp_path):
    host_memory.trim_host_memory()
    assert step_time.peak_memory() > 0
    assert doctor._file_system(str(tmp_path)) == "unknown"


def test_a_work_directory_is_locked_without_proc(mac, tmp_path):
    with lock_workdir(str(tmp_path)):
        with pytest.raises(UserError, match="in use"):
            with lock_workdir(str(tmp_path)):
                pass
    with lock_workdir(str(tmp_path)):
        pass


@pytest.mark.slow
def test_packing_and_reading_in_threads(mac, videos, tmp_path):
    cli.main(["data", "pack", str(videos), str(tmp_path / "packed"), "--short-side=32"])
    small = ["--config.data.holdout=0", "--config.batch_size=8", "--seconds=0.1"]
    small += [f"--config.clip.{size}" for size in ("frames=4", "stride=2", "height=32", "width=32")]
    small += [f"--config.model.{part}.depth=1" for part in ("encoder", "decoder")]
    source = f"--config.data.train={tmp_path}/packed"
    cli.main(["data", "benchmark", "--config=pretrain:tiny,custom", source, *small])


def test_the_memory_is_that_of_the_job_and_of_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    monkeypatch.setattr(host, "OWN", tmp_path / "own")
    whole = host.main_memory()
    assert whole > 2**28
    (tmp_path / "own").write_text("1:cpu:/\n0::/slurm/job\n")
    (tmp_path / "slurm/job").mkdir(parents=True)
    (tmp_path / "slurm/job/memory.max").write_text("max\n")
    assert host.main_memory() == whole
    (tmp_path / "slurm/memory.max").write_text(f"{2**28}\n")
    assert host.main_memory() == 2**28
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{2**27}\n")
    assert host.main_memory() == 2**27
