"""Connect the processes that train one model, and exchange values between them."""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.host_memory import disable_async_dispatch
from videomae_jax.errors import UserError

# It may take this much longer than a heartbeat until a dead peer is reported, in seconds.
GRACE = 15
# Words in the error of a collective whose peer is gone: the run can be restarted.
LOST = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED", "by peer")
# The beginning of an error of XLA; JAX also raises these as ValueError.
STATUS = re.compile(r"[A-Z_]+: ")


@contextmanager
def connected(
    *,
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> Iterator[None]:
    """Connect this process to its peers; enter it before JAX initializes its devices.

    coordinator: HOST:PORT of process 0. Values that are None are detected on Slurm, TPU pods,
    Kubernetes and Open MPI; without one of these, or if `processes` is 1, there are no peers.
    A peer that is silent for `heartbeat_seconds` ends this process with SIGABRT (134). Any other
    error ends this process at once, without waiting for its peers, which may wait in a
    collective until the heartbeat ends them. Raises UserError for impossible arguments.
    """
    # Also needed with peers: on CPUs two programs that run at once may start their collectives
    # in a different order on each process, and deadlock.
    disable_async_dispatch()
    if not _connect(coordinator, processes, process_id, heartbeat_seconds):
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        _leave(130, "videomae: interrupted")
    except UserError as error:
        _leave(error.exit_code, f"videomae: {error}")
    except BaseException as error:
        said = _by_xla(error)
        if said is None:
            _leave(1, traceback.format_exc())
        # A collective fails as soon as a peer is gone, but only the heartbeat is certain.
        _say(f"videomae: process {jax.process_index()}: {said.splitlines()[0]}")
        _say("videomae: waiting for the heartbeat to report whether another process died")
        time.sleep(heartbeat_seconds + GRACE)
        _leave(134 if any(word in said for word in LOST) else 1, traceback.format_exc())
    jax.distributed.shutdown()


def _by_xla(error: BaseException | None) -> str | None:
    """Return the message of XLA in an error or its causes; None if XLA did not raise it.

    Orbax raises a TimeoutError of its own, with the error of XLA as its cause.
    """
    while error is not None:
        kind = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        if kind and STATUS.match(str(error)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _connect(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> bool:
    """Return whether there are peers."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    explicit = None not in given.values()
    if processes == 1:
        return False
    if coordinator is not None and not re.search(r":\d+$", coordinator):
        raise UserError(f"--coordinator {coordinator} has no port: add one, {coordinator}:1234")
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise UserError(f"--process-id {process_id} of {processes}: use 0 to {processes - 1}")
    # Its handler would swallow a SIGTERM that arrives before `stop_signals` installs ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            # Otherwise a Slurm variable would limit each process to one device.
            cluster_detection_method="deactivate" if explicit else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError:
        missing = [flag for flag, value in given.items() if value is None]
        if len(missing) < len(given):
            raise UserError(
                f"{' and '.join(missing)} not given, and no cluster found that sets it: give all "
                "of --coordinator, --processes and --process-id, or none"
            ) from None
        return False
    if jax.process_count() == 1:
        return False
    if jax.default_backend() == "cpu":
        # Each process would load the program that the first compiled for itself, and hang.
        jax.config.update("jax_enable_compilation_cache", False)
    return True


def everyone(fine: bool) -> list[bool]:
    """Return the argument of every process, once all have called."""
    return multihost_utils.process_allgather(np.array([fine])).ravel().tolist()


def numbers_of_first(numbers: Sequence[int]) -> list[int]:
    """Return the argument of the first process, once all have called."""
    gathered = multihost_utils.process_allgather(np.array(numbers))
    return gathered.reshape(-1, len(numbers))[0].tolist()


def say(text: str) -> None:
    """Print on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


class Peers:
    """An all-gather of a few numbers of each process, once a step.

    On several processes the result is that of the call before, so that no process waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._gather = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, P()))
        owners = [device.process_index for device in mesh.devices.flat]
        # The first device of each process.
        self._firsts = np.array([owners.index(process) for process in sorted(set(owners))])
        self._pending: jax.Array | None = None

    def all_gather(self, *numbers: float) -> np.ndarray:
        """Send `numbers`; return float32 [processes, numbers], those of the call before.

        The first call returns zeros. All processes must call it equally often. A single process
        gets its own numbers at once.
        """
        row = np.array([numbers], np.float32)
        if len(self._firsts) == 1:
            return row
        before = self._pending
        shape = (self._sharding.mesh.size, len(numbers))
        rows = jax.make_array_from_callback(shape, self._sharding, lambda _: row)
        self._pending = self._gather(rows)
        if before is None:
            return np.zeros((len(self._firsts), len(numbers)), np.float32)
        return np.asarray(before)[self._firsts]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(code: int, text: str) -> NoReturn:
    _say(text.rstrip())
    sys.stdout.flush()
    # Without clean-up, which would wait for the peers.
    os._exit(code)
