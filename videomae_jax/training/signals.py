"""Ends a process that makes no progress, and says where it hangs."""

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What compiles, reads or writes a checkpoint, or evaluates a batch may take at least so long, in
# seconds.
PATIENCE = 1800
# Between the report and the end, in seconds.
PAUSE = 2.0


class Watchdog:
    """Unless fed within `seconds`, prints every thread's stack and dies of SIGALRM (142).

    Both happen outside Python, so that a call that holds the interpreter's lock cannot stop
    them. Heartbeats do not notice a process that hangs: its threads of the network still live.
    Use it in a `with`; it begins patient.
    """

    def __init__(self, seconds: float):
        self.seconds, self._patience = seconds, PATIENCE

    def feed(self) -> None:
        """Tell that there is progress."""
        limit = max(self.seconds, self._patience)
        faulthandler.dump_traceback_later(limit, file=sys.__stderr__)
        signal.setitimer(signal.ITIMER_REAL, limit + PAUSE)

    def begin(self) -> None:
        """Expect steps from now on."""
        self._patience = 0
        self.feed()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Allow what is done inside more time."""
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
    """The number of the signal that asked this process to stop; 0 while none did."""

    signal: int = 0

    @property
    def received(self) -> str | None:
        """The name of that signal."""
        return signal.Signals(self.signal).name if self.signal else None


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Turn Ctrl-C and SIGTERM into a wish that the loop fulfils between two steps.

    The second one of either takes its usual course: it interrupts or kills.
    """
    stop, before = StopSignal(), {}

    def handle(number, _):
        stop.signal = number
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
