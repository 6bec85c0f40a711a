"""The line that says how far a long command is."""

import io
import sys

import pytest

from videomae_jax.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tick(monkeypatch):
    """A clock that is ten seconds further at each look."""
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(times))


def show_all(*, begun=0):
    progress = Progress(8, begun=begun)
    for done in range(begun + 1, 9):
        progress.show(done, count=done - begun, unit="videos", of=f"video {done} of 8")
    progress.close()


def test_a_log_gets_a_line_every_half_minute(tick, capsys):
    show_all()
    assert capsys.readouterr().err.splitlines() == [
        "video 3 of 8, 3 videos, 0.1/s, 0:00:50 left",
        "video 6 of 8, 6 videos, 0.1/s, 0:00:20 left",
    ]


def test_what_an_earlier_call_did_counts_neither_as_rate_nor_as_left(tick, capsys):
    show_all(begun=4)
    assert capsys.readouterr().err == "video 7 of 8, 3 videos, 0.1/s, 0:00:10 left\n"


def test_a_terminal_has_one_line_that_goes_when_all_is_done(tick, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_all()
    assert terminal.getvalue().count("left") == 8 and "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")


def test_times_have_hours():
    assert [clock(59.6), clock(3599), clock(282_240)] == ["0:01:00", "0:59:59", "78:24:00"]
