"""What a process that has peers ends with, by what ended it."""

import jax
import pytest

from videomae_jax.devices import distributed
from videomae_jax.errors import UserError

GONE = "Gloo all-reduce failed: pair.cc:547] Connection closed by peer [127.0.0.1]:15784"


def caused(error, cause):
    """`error` as `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


BARRIER = "INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat"


@pytest.mark.parametrize(
    ("error", "code", "waits"),
    [
        (ValueError(f"UNKNOWN: {GONE}"), 134, True),  # as a jitted call raises it
        (jax.errors.JaxRuntimeError("UNAVAILABLE: socket closed"), 134, True),
        # As orbax raises it, where a peer died during a save.
        (caused(TimeoutError("async_write"), jax.errors.JaxRuntimeError(BARRIER)), 134, True),
        (caused(TimeoutError("async_write"), OSError("disk")), 1, False),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: two shapes"), 1, True),
        (ValueError("batch: shapes do not match"), 1, False),
        (UserError("no such file"), 1, False),
        (KeyboardInterrupt(), 130, False),
    ],
)
def test_a_lost_peer_is_a_reason_to_restart_and_a_bug_is_none(monkeypatch, error, code, waits):
    slept = []

    def leave(code, text):
        raise SystemExit(code)

    monkeypatch.setattr(distributed, "_connect", lambda *_: True)
    monkeypatch.setattr(distributed, "_leave", leave)
    monkeypatch.setattr(distributed.time, "sleep", slept.append)
    place = dict(coordinator=None, processes=2, process_id=0, heartbeat_seconds=10)
    with pytest.raises(SystemExit) as left:
        with distributed.connected(**place):
            raise error
    assert left.value.code == code and bool(slept) == waits


def test_a_coordinator_without_a_port_is_refused():
    place = dict(coordinator="host0", processes=2, process_id=0, heartbeat_seconds=10)
    with pytest.raises(UserError, match="--coordinator host0 has no port: add one, host0:1234"):
        with distributed.connected(**place):
            pass
