"""How far a long command is, at what rate, and when it will be done."""

import sys
import time

# Between two lines, in seconds: on a terminal, where the line is rewritten, and in a log.
TERMINAL, LOG = 0.5, 30.0


class Progress:
    """A line on standard error, so that results can be piped.

    total: the end of what `show` is told; `done` may be a fraction of it. begun: what earlier
    calls of the same command had done.
    """

    def __init__(self, total: float, *, begun: float = 0.0):
        self._total, self._begun, self._start = total, begun, time.monotonic()
        self._live = sys.stderr.isatty()
        self._next = self._start + (TERMINAL if self._live else LOG)
        self._shown = False

    def show(self, done: float, *, count: int, unit: str, of: str) -> None:
        """Print a line if it is time: `count` things called `unit` so far, and where: `of`."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (TERMINAL if self._live else LOG)
        self._shown = True
        spent, share = now - self._start, done - self._begun
        left = f", {clock(spent * (self._total - done) / share)} left" if share > 0 else ""
        line = f"{of}, {count:,} {unit}, {count / spent:.1f}/s{left}"
        before, after = ("\r\033[K", "") if self._live else ("", "\n")
        print(f"{before}{line}", end=after, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Make room for what is printed next."""
        if self._live and self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Write seconds as H:MM:SS."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
