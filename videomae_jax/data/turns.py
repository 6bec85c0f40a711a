"""Threads that compute in turns, so that many of them can wait for a bucket at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_this = threading.local()  # thread; `turns`: the semaphore that it holds, if it has a turn


class Turns:
    """Lets `count` threads compute at once, and any number wait for data, see `waiting`."""

    def __init__(self, count: int):
        self._turns = threading.Semaphore(count)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for a turn and keep it while the body runs."""
        with self._turns:
            _this.turns = self._turns
            try:
                yield
            finally:
                _this.turns = None


@contextmanager
def waiting() -> Iterator[None]:
    """Give the turn of this thread, if it has one, to another one while the body runs."""
    turns = getattr(_this, "turns", None)
    if turns is None:
        yield
        return
    turns.release()
    try:
        yield
    finally:
        turns.acquire()
