"""Record signals that ask a run to stop, and end a process that makes no progress."""

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Time allowed to compile, to read or write a checkpoint, or to evaluate a batch, in seconds.
PATIENCE = 1800
# Between the report and the end of the process, in seconds.
PAUSE = 2.0


class Watchdog:
    """Print the stack of every thread and end by SIGALRM (142) unless fed within `seconds`.

    Both happen outside Python, so that a call that holds the interpreter's lock cannot prevent
    them. Heartbeats do not notice a process that hangs, because its network threads still run.
    Use it in a `with`; until `begin` it allows `PATIENCE` seconds.
    """

    def __init__(self, seconds: float):
        self.seconds, self._patience = seconds, PATIENCE

    def feed(self) -> None:
        """Report progress."""
        limit = max(self.seconds, self._patience)
        faulthandler.dump_traceback_later(limit, file=sys.__stderr__ or 2)
        signal.setitimer(signal.ITIMER_REAL, limit + PAUSE)

    def begin(self) -> None:
        """Expect steps from now on."""
        self._patience = 0
        self.feed()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Allow the code inside more time."""
        before, self._patience = self._patience, PATIENCE
        self.feed()
        yield
        self._patience = before
        self.feed()

    def __enter__(self) -> "Watchdog":
        self._handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._timer = signal.getitimer(signal.ITIMER_REAL)
        self.feed()
        return self

    def __exit__(self, *_) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *self._timer)
        signal.signal(signal.SIGALRM, self._handler)


class StopSignal:
    """The number of the signal that asked this process to stop, or 0."""

    signal: int = 0

    @property
    def received(self) -> str | None:
        """The name of that signal, or None."""
        return signal.Signals(self.signal).name if self.signal else None


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Record Ctrl-C and SIGTERM so that the loop can stop cleanly between steps.

    The second one of either has its usual effect: it interrupts or kills.
    """
    stop = StopSignal()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop.signal = number
        signal.signal(number, before[number])

    for stopping in (signal.SIGINT, signal.SIGTERM):
        before[stopping] = signal.signal(stopping, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
