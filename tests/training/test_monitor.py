"""What the log, TensorBoard and the account of a run say, told by one process of several."""

import json

import jax
import numpy as np
import pytest

from videomae_jax.errors import UserError
from videomae_jax.training import monitor as module
from videomae_jax.training.monitor import Monitor
from videomae_jax.training.signals import Watchdog
from videomae_jax.training.workdir import read_metrics

METRICS = dict(loss=1.0, lr=0.1, grad_norm=1.0, skipped=0)


@pytest.fixture
def make(tmp_path):
    """Make a monitor of a run of so many steps, with a line every `log_every`."""
    with Watchdog(600) as watchdog:
        yield lambda steps, log_every: Monitor(
            str(tmp_path),
            total_steps=steps,
            batch_size=8,
            flops=1.0,
            log_every=log_every,
            max_skipped_steps=1,
            watchdog=watchdog,
        )


def test_the_process_that_waits_most_is_named(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monitor = make(2, log_every=1)
    monitor.begin(0)
    for step, waited in [(1, [0.0, 0.0, 1e-6]), (2, [0.0, 1.0, 2e-6])]:
        monitor.record(step, METRICS, np.arange(8), waited=np.array(waited))
    monitor.close()
    one, two = capsys.readouterr().out.splitlines()
    assert "(process 2)" in one and "(process 1)" in two
    rows = read_metrics(str(tmp_path))
    assert [row["waiting_most"] for row in rows] == [2, 1]
    assert rows[1]["waiting_share"] > rows[0]["waiting_share"] > 0


@pytest.mark.parametrize(("seconds", "step"), [(0.0, 3), (60.0, 0)])
def test_a_killed_run_knows_the_steps_it_took_since_its_last_line(
    make, tmp_path, monkeypatch, seconds, step
):
    monkeypatch.setattr(module, "ACCOUNT_SECONDS", seconds)
    monitor = make(1000, log_every=100)
    monitor.begin(0)
    for number in range(1, 5):  # the last one is only read with the one after it
        monitor.record(number, METRICS, np.arange(8), waited=np.zeros(1))
    assert json.loads((tmp_path / "goodput.json").read_text())["step"] == step
    monitor.close()
    assert json.loads((tmp_path / "goodput.json").read_text())["step"] == 4


def test_a_run_that_is_not_finite_closes_its_files(make, tmp_path):
    """Whose last step, which is read at the end, is not finite either."""
    monitor = make(9, log_every=1)
    monitor.begin(0)
    monitor.record(1, METRICS | {"skipped": 1}, np.arange(8), waited=np.zeros(1))
    with pytest.raises(UserError, match="1 steps in a row .* at step 1 on examples"):
        monitor.record(2, METRICS | {"skipped": 2}, np.arange(8), waited=np.zeros(1))
    with pytest.raises(UserError, match="2 steps in a row"):
        monitor.close()
    assert json.loads((tmp_path / "goodput.json").read_text())["step"] == 2


def test_a_line_that_was_cut_short_costs_no_other(make, tmp_path):
    """By a full disk; the next start must not add to it, nor fail at its end."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    monitor = make(3, log_every=1)
    monitor.begin(2)
    monitor.record(3, METRICS, np.arange(8), waited=np.zeros(1))
    monitor.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(str(tmp_path))] == [
        (1, 2.0),
        (3, 1.0),
    ]
