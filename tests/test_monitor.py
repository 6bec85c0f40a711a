"""What the log and TensorBoard say of several processes, told by one."""

import jax
import numpy as np

from videomae_jax.training.monitor import Monitor, read_metrics
from videomae_jax.training.watchdog import Watchdog


def test_the_process_that_waits_most_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with Watchdog(600) as watchdog:
        monitor = Monitor(
            str(tmp_path),
            total_steps=2,
            batch_size=8,
            flops=1.0,
            log_every=1,
            max_skipped_steps=1,
            watchdog=watchdog,
        )
        monitor.begin(0)
        metrics = dict(loss=1.0, lr=0.1, grad_norm=1.0, skipped=0)
        for step, waited in [(1, [0.0, 0.0, 1e-6]), (2, [0.0, 1.0, 2e-6])]:
            monitor.record(step, metrics, np.arange(8), waited=np.array(waited))
        monitor.close()
    one, two = capsys.readouterr().out.splitlines()
    assert "(process 2)" in one and "(process 1)" in two
    rows = read_metrics(str(tmp_path))
    assert [row["waiting_most"] for row in rows] == [2, 1]
    assert rows[1]["waiting_share"] > rows[0]["waiting_share"] > 0
