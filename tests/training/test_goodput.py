"""The account of where a run's time went, over starts that were killed."""

import json

import pytest

from videomae_jax.training import goodput
from videomae_jax.training.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(goodput.time, "time", lambda: now[0])
    return now


def take(book, steps, *, seconds, waited):
    for step in steps:
        book.stepped(step, seconds=seconds, waited=waited)


def test_two_killed_starts_count_against_the_useful_share(tmp_path, clock):
    first = Goodput(str(tmp_path))
    first.begin(0)
    take(first, range(1, 11), seconds=2.0, waited=0.5)  # 1 to 10
    first.paused("saving", 3.0)
    first.write()
    take(first, [11], seconds=2.0, waited=0.5)  # Killed before it could be written.

    clock[0] = 1050.0
    second = Goodput(str(tmp_path))
    second.begin(8)
    assert second.metrics()["lost_steps"] == 2 and second.metrics()["restarts"] == 1
    take(second, range(9, 13), seconds=2.0, waited=0.0)  # 9 to 12
    second.write()

    clock[0] = 1100.0
    third = Goodput(str(tmp_path))
    third.begin(12)
    take(third, range(13, 15), seconds=2.0, waited=0.0)  # 13 and 14
    third.paused("evaluating", 10.0)
    # 16 steps of 2 s, 5 s of them waiting; 2 of the 16 were done twice; 100 s since the start.
    assert third.metrics() == {
        "useful_share": pytest.approx((16 * 2 - 5) * 14 / 16 / 100),
        "restarts": 2,
        "lost_steps": 2,
    }
    assert str(third) == (
        "24% of 100 s since the first start were training, 5% waiting for data, 3% saving, "
        "10% evaluating; 2 restarts, 2 steps lost"
    )
    third.write()
    assert json.loads((tmp_path / "goodput.json").read_text())["step"] == 14


def test_a_clock_that_is_behind_does_not_make_more_time_than_there_was(tmp_path, clock):
    """Another host's, or one that was corrected."""
    first = Goodput(str(tmp_path))
    first.begin(0)
    take(first, range(1, 11), seconds=2.0, waited=0.5)
    first.write()
    clock[0] = 500.0
    assert Goodput(str(tmp_path)).metrics()["useful_share"] == 0.75


def test_an_account_that_a_loss_of_power_emptied_begins_again(tmp_path, clock):
    (tmp_path / "goodput.json").touch()
    book = Goodput(str(tmp_path))
    book.begin(7)
    assert book.metrics() == {"useful_share": 0.0, "restarts": 0, "lost_steps": 0}
