"""Logging, TensorBoard and metrics of a run; the only module that knows clu.

Metrics of step n - 1 are read while step n computes, so that reading never stalls the device.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from videomae_jax.devices.chips import peak_flops
from videomae_jax.devices.distributed import say
from videomae_jax.errors import UserError
from videomae_jax.progress import clock
from videomae_jax.training.goodput import Goodput
from videomae_jax.training.signals import Watchdog
from videomae_jax.training.workdir import METRICS

# The time account is also written between two progress lines, so that a run that is killed loses
# at most this much of it.
ACCOUNT_SECONDS = 5.0


# The step's number, metrics, example ids, and seconds [processes] that each process has waited.
Step = tuple[int, dict[str, jax.Array], jax.Array, np.ndarray]


class Monitor:
    """Progress lines, TensorBoard, metrics.jsonl, and the end of a run that has gone NaN.

    total_steps: where the run ends. batch_size: clips a step. flops: of one training clip.
    Only the first process writes and prints.
    """

    def __init__(
        self,
        workdir: str,
        *,
        total_steps: int,
        batch_size: int,
        flops: float,
        log_every: int,
        max_skipped_steps: int,
        watchdog: Watchdog,
    ):
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.log_every = log_every
        self.max_skipped_steps = max_skipped_steps
        self.watchdog = watchdog
        peak = peak_flops(jax.devices()[0].device_kind)
        self._mfu_per_rate = flops / (peak * jax.device_count()) if peak else None
        self._writer = None
        self._goodput = Goodput(workdir)
        self._file = Path(workdir) / METRICS
        if jax.process_index() == 0:
            from clu.metric_writers import SummaryWriter  # brings TensorFlow, a few seconds

            self._writer = SummaryWriter(str(Path(workdir) / "tensorboard"))
            with open(self._file, "ab+") as file:
                # A line that a full disk cut short must not take the next one with it.
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    file.write(b"" if file.read(1) == b"\n" else b"\n")
        self._pending: Step | None = None
        self._window: list[dict[str, float]] = []
        self._seconds: list[float] = []
        self._saving = 0.0
        self._last = self._accounted = time.perf_counter()
        self._waited = self._waited_before = np.zeros(jax.process_count())

    def begin(self, step: int) -> None:
        """Start to measure; call it right before the step after `step`."""
        self._last = time.perf_counter()
        self.watchdog.begin()
        if self._writer:
            self._goodput.begin(step)

    def record(
        self, step: int, metrics: dict[str, jax.Array], ids: jax.Array, *, waited: np.ndarray
    ) -> None:
        """Record step number `step` (from 1), just dispatched.

        ids: int32 [B], the examples of its batch. waited: seconds [processes] that each process
        has waited for data since `begin`. Raises UserError after `max_skipped_steps` non-finite
        steps in a row.
        """
        pending, self._pending = self._pending, (step, metrics, ids, waited)
        if pending:
            self._read(*pending)

    def flush(self) -> None:
        """Read the metrics of the last step."""
        pending, self._pending = self._pending, None
        if pending:
            self._read(*pending)

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """Leave the time of "saving" or "evaluating" inside out of the reported rate."""
        self.flush()
        start = time.perf_counter()
        with self.watchdog.patient():
            yield
        seconds = time.perf_counter() - start
        self._last += seconds
        self._saving += seconds if kind == "saving" else 0.0
        self._goodput.paused(kind, seconds)

    def evaluated(
        self, step: int, metrics: dict[str, float], note: str, pictures: dict[str, np.ndarray]
    ) -> None:
        """Report held-out metrics; pictures, uint8 [h, w, 3] each, go to TensorBoard."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._write(
            step,
            {f"eval/{name}": value for name, value in metrics.items()},
            f"held-out at step {step:,}  {values}  ({note})",
        )
        if self._writer:
            self._writer.write_images(step, {k: image[None] for k, image in pictures.items()})

    def close(self) -> None:
        """Read the metrics of the last step and close the files, also if that step ends the run."""
        try:
            self.flush()
        finally:
            if self._writer:
                self._writer.close()
                self._goodput.write()

    def summary(self) -> str:
        """Return where the time of the run went, over all its starts."""
        return str(self._goodput)

    def _read(self, step, metrics, ids, waited):
        # In one call: the copies to the host run side by side.
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.watchdog.feed()
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._goodput.stepped(
            step, seconds=now - self._last, waited=float((waited - self._waited).max())
        )
        self._last, self._waited = now, waited
        if self._writer and now - self._accounted > ACCOUNT_SECONDS:
            self._accounted = now
            self._goodput.write()
        skipped = int(values.pop("skipped"))
        if skipped >= self.max_skipped_steps:
            raise UserError(
                f"{skipped} steps in a row gave a loss or gradient that is not finite, the last "
                f"at step {step} on examples {_everywhere(ids).tolist()}; none of them changed "
                "the model: lower the learning rate and go on from the last checkpoint"
            )
        if skipped:
            say(f"step {step:,}: loss or gradient not finite, skipped ({skipped} in a row)")
        else:
            self._window.append(values)
        if step % self.log_every and step != self.total_steps:
            return
        if self._window:
            self._report(step)
        self._window, self._seconds, self._saving = [], [], 0.0
        self._waited_before = waited

    def _report(self, step):
        seconds = sum(self._seconds)
        steps = len(self._seconds)
        mean = {name: float(np.mean([v[name] for v in self._window])) for name in self._window[0]}
        mean["lr"] = self._window[-1]["lr"]
        rate = steps * self.batch_size / seconds
        shares = (self._waited - self._waited_before) / seconds
        share = float(shares.max())
        slowest = int(shares.argmax())
        speed = {
            "clips_per_second": rate,
            "step_seconds_p50": float(np.median(self._seconds)),
            "step_seconds_max": max(self._seconds),
            "saving_seconds": self._saving,
            "waiting_share": share,  # of the process that waits most
            "waiting_most": slowest,
            **self._goodput.metrics(),
        }
        scores = (f"{k} {v:.4f}" for k, v in mean.items() if k not in ("lr", "grad_norm"))
        line = [
            f"step {step:,}/{self.total_steps:,}",
            *scores,
            f"lr {mean['lr']:.2e}",
            f"grad {mean['grad_norm']:.3g}",
            f"{rate:,.4g} clips/s",
            f"waiting {share:.0%}" + (f" (process {slowest})" if len(shares) > 1 else ""),
            f"ETA {clock((self.total_steps - step) * seconds / steps)}",
        ]
        if self._mfu_per_rate:
            speed["mfu"] = rate * self._mfu_per_rate
            line.append(f"MFU {speed['mfu']:.0%}")
        self._write(step, mean | speed, "  ".join(line))

    def _write(self, step, values, line):
        if self._writer:
            self._writer.write_scalars(step, values)
            # Opened each time: an open file that somebody removed takes every write in silence.
            with open(self._file, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self._goodput.write()
        # Last: what was said is also written, whatever happens next.
        say(line)


def _everywhere(ids: jax.Array) -> np.ndarray:
    """Return the values of an array that is sharded over all processes."""
    return np.asarray(multihost_utils.process_allgather(ids, tiled=True))
