"""Show the progress of a long command, its rate and the time left."""

import sys
import time

# Seconds between two lines. On a terminal, the line is rewritten in place.
TERMINAL = 0.5
LOG = 30.0


class Progress:
    """A progress line on standard error, so that standard output can be piped.

    total: the value of `done` at the end. begun: its value at the start, for a command that
    resumes.
    """

    def __init__(self, total: float, *, begun: float = 0.0):
        self._total = total
        self._begun = begun
        self._start = time.monotonic()
        self._live = sys.stderr.isatty()
        self._next = self._start + (TERMINAL if self._live else LOG)
        self._shown = False

    def show(self, done: float, *, count: int, unit: str, of: str) -> None:
        """Print a line, unless the last one is too recent.

        done: progress so far, may be fractional. count: number of items that this process
        finished. unit: what they are. of: the position, such as "video 3 of 10".
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (TERMINAL if self._live else LOG)
        self._shown = True
        spent = now - self._start
        progress = done - self._begun
        left = ""
        if progress > 0:
            left = f", {clock(spent * (self._total - done) / progress)} left"
        line = f"{of}, {count:,} {unit}, {count / spent:.1f}/s{left}"
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Erase the line on a terminal, so that other output can follow."""
        if self._live and self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
