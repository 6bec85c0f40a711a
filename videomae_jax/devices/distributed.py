"""Several processes that train one model: connecting them, and what they tell each other."""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.host_memory import disable_async_dispatch
from videomae_jax.errors import UserError

# How much longer than a heartbeat it may take to hear that a peer is dead, in seconds.
GRACE = 15
# What a collective says that did not hear from a peer in time: to be tried again.
LOST = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED", "by peer")
# How what XLA says begins; JAX raises it as ValueError too.
STATUS = re.compile(r"[A-Z_]+: ")


@contextmanager
def connected(
    *,
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> Iterator[None]:
    """Connect this process to its peers, before JAX first looks at its devices.

    coordinator: HOST:PORT of process 0. What is None is found out on Slurm, TPU pods, Kubernetes
    and Open MPI; where there is none of these, or `processes` is 1, the process is alone.
    A peer that is silent for `heartbeat_seconds` ends this process with SIGABRT (134).
    Whatever else ends one of several ends it at once, without waiting for the others: they
    would wait in a collective that never comes, until the heartbeat tells them.
    """
    # With peers for another reason too: on CPUs two programs in flight may meet them in different
    # orders, and wait for ever.
    disable_async_dispatch()
    if not _connect(coordinator, processes, process_id, heartbeat_seconds):
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        _leave(130, "videomae: interrupted")
    except UserError as error:
        _leave(1, f"videomae: {error}")
    except BaseException as error:
        said = _by_xla(error)
        if said is None:
            _leave(1, traceback.format_exc())
        # A collective fails as soon as a peer is gone; whether one is, the heartbeat tells.
        _say(f"videomae: process {jax.process_index()}: {said.splitlines()[0]}")
        _say("videomae: waiting for the heartbeat to tell whether another process died")
        time.sleep(heartbeat_seconds + GRACE)
        _leave(134 if any(word in said for word in LOST) else 1, traceback.format_exc())
    jax.distributed.shutdown()


def _by_xla(error: BaseException | None) -> str | None:
    """What XLA said, in an error or in what caused it: orbax raises a TimeoutError of its own."""
    while error is not None:
        kind = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        if kind and STATUS.match(str(error)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _connect(coordinator, processes, process_id, heartbeat_seconds) -> bool:
    """Return whether there are peers."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    explicit = None not in given.values()
    if processes == 1:
        return False
    if explicit and not 0 <= process_id < processes:
        raise UserError(f"--process-id {process_id} of {processes}: use 0 to {processes - 1}")
    # Its handler of SIGTERM would swallow those that come before ours stands.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            # Else a variable of Slurm's would choose one device for each process.
            cluster_detection_method="deactivate" if explicit else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError:
        missing = [flag for flag, value in given.items() if value is None]
        if len(missing) < len(given):
            raise UserError(
                f"{' and '.join(missing)} not given, and no cluster found that tells: give all "
                "of --coordinator, --processes and --process-id, or none"
            ) from None
        return False
    if jax.process_count() == 1:
        return False
    if jax.default_backend() == "cpu":
        # Each process would load what the first compiled for itself, and wait for ever for peers.
        jax.config.update("jax_enable_compilation_cache", False)
    return True


def everyone(fine: bool) -> list[bool]:
    """Return the argument of every process, once all have called."""
    return multihost_utils.process_allgather(np.array([fine])).ravel().tolist()


def say(text: str) -> None:
    """Print, once however many processes there are."""
    if jax.process_index() == 0:
        print(text, flush=True)


class Peers:
    """What each process tells all others, once a step, a few numbers each.

    On several processes an answer is read one step late, so that nobody waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._gather = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, P()))
        owners = [device.process_index for device in mesh.devices.flat]
        # One device of each process speaks for it.
        self._speakers = np.array([owners.index(process) for process in sorted(set(owners))])
        self._answer = None

    def all_gather(self, *numbers: float) -> np.ndarray:
        """Tell `numbers`; returns float32 [processes, numbers], what all told the call before.

        Zeros at the first call. All processes must call it equally often. A process alone
        is answered at once.
        """
        row = np.array([numbers], np.float32)
        if len(self._speakers) == 1:
            return row
        before = self._answer
        shape = (self._sharding.mesh.size, len(numbers))
        rows = jax.make_array_from_callback(shape, self._sharding, lambda _: row)
        self._answer = self._gather(rows)
        if before is None:
            return np.zeros((len(self._speakers), len(numbers)), np.float32)
        return np.asarray(before)[self._speakers]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(code: int, text: str) -> None:
    _say(text.rstrip())
    sys.stdout.flush()
    # No clean-up: it would wait for the peers.
    os._exit(code)
