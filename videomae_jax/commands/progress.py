"""One line that says how far a long command is."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# Seconds between two looks of the line: on a terminal it is rewritten, in a log it is added.
TERMINAL, LOG = 0.2, 30.0


def progress(
    items: Iterable[T], *, total: int, unit: str, note: Callable[[], str] = str
) -> Iterator[T]:
    """Pass items on; write `n of total unit, rate, time left, note()` to stderr meanwhile."""
    live = sys.stderr.isatty()
    began = said = time.monotonic()
    count = 0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if count == total or now - said >= (TERMINAL if live else LOG):
            said = now
            rate = count / max(now - began, 1e-9)
            left = (total - count) / rate
            line = f"{count:,} of {total:,} {unit}, {rate:,.1f}/s, {_clock(left)} left"
            line += f", {note()}" if note() else ""
            print(f"\r{line}\033[K" if live else line, end="" if live else "\n", file=sys.stderr)
    if live and count:
        print(file=sys.stderr)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
