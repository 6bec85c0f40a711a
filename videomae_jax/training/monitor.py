"""What a run tells while it runs; the only module that knows clu.

Metrics of step n - 1 are read while step n computes, so that reading never stalls the device.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.training.chips import peak_flops


class Monitor:
    """Progress lines, TensorBoard, metrics.jsonl, and the end of a run that has gone NaN.

    total_steps: where the run ends. batch_size: clips a step. flops: of one training clip.
    On processes other than the first it only watches.
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
    ):
        self.total_steps, self.batch_size, self.log_every = total_steps, batch_size, log_every
        self.max_skipped_steps = max_skipped_steps
        peak = peak_flops(jax.devices()[0].device_kind)
        self._mfu_per_rate = flops / (peak * jax.device_count()) if peak else None
        self._writer, self._file = None, None
        if jax.process_index() == 0:
            from clu.metric_writers import SummaryWriter  # brings TensorFlow, a few seconds

            self._writer = SummaryWriter(str(Path(workdir) / "tensorboard"))
            self._file = open(Path(workdir) / "metrics.jsonl", "a", buffering=1)
        self._pending, self._window, self._skipped = None, [], 0
        self._since, self._waited_before = time.perf_counter(), 0.0

    def restart_clock(self, *, waited: float) -> None:
        """Begin to measure the rate here. waited: as for `record`."""
        self._since, self._waited_before = time.perf_counter(), waited

    def record(
        self, step: int, metrics: dict[str, jax.Array], ids: jax.Array, *, waited: float
    ) -> None:
        """Take note of step number `step` (from 1), just dispatched.

        ids: int32 [B], the examples of its batch. waited: seconds that the run has waited for
        data in all. Raises UserError after `max_skipped_steps` non-finite steps in a row.
        """
        pending, self._pending = self._pending, (step, metrics, ids, waited)
        if pending:
            self._read(*pending)

    def flush(self) -> None:
        """Read the last step's metrics too."""
        if self._pending:
            self._read(*self._pending)
            self._pending = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep what is done inside (evaluation, saving) out of the reported rate."""
        self.flush()
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

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
        self.flush()
        if self._writer:
            self._writer.close()
            self._file.close()

    def _read(self, step, metrics, ids, waited):
        values = {name: float(value) for name, value in metrics.items()}
        skipped = int(values.pop("skipped"))
        if skipped >= self.max_skipped_steps:
            raise UserError(
                f"{skipped} steps in a row gave a loss or gradient that is not finite, the last "
                f"at step {step} on examples {np.asarray(ids).tolist()}; none of them changed "
                "the model: lower the learning rate and go on from the last checkpoint"
            )
        if skipped:
            self._skipped += 1
            self._say(f"step {step:,}: loss or gradient not finite, skipped ({skipped} in a row)")
        else:
            self._window.append(values)
        if step % self.log_every and step != self.total_steps:
            return
        if self._window:
            self._report(step, waited)
        self._window, self._skipped = [], 0
        self.restart_clock(waited=waited)

    def _report(self, step, waited):
        seconds = time.perf_counter() - self._since
        steps = len(self._window) + self._skipped
        mean = {name: float(np.mean([v[name] for v in self._window])) for name in self._window[0]}
        mean["lr"] = self._window[-1]["lr"]
        rate = steps * self.batch_size / seconds
        share = (waited - self._waited_before) / seconds
        speed = {"clips_per_second": rate, "waiting_share": share}
        scores = (f"{k} {v:.4f}" for k, v in mean.items() if k not in ("lr", "grad_norm"))
        line = [
            f"step {step:,}/{self.total_steps:,}",
            *scores,
            f"lr {mean['lr']:.2e}",
            f"grad {mean['grad_norm']:.3g}",
            f"{rate:,.4g} clips/s",
            f"waiting {share:.0%}",
            f"ETA {_clock((self.total_steps - step) * seconds / steps)}",
        ]
        if self._mfu_per_rate:
            speed["mfu"] = rate * self._mfu_per_rate
            line.append(f"MFU {speed['mfu']:.0%}")
        self._write(step, mean | speed, "  ".join(line))

    def _write(self, step, values, line):
        self._say(line)
        if self._writer:
            self._writer.write_scalars(step, values)
            try:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {self._file.name}: {error.strerror}") from None

    def _say(self, line):
        if jax.process_index() == 0:
            print(line, flush=True)


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl in step order.

    A resumed run repeats the steps after its checkpoint; the later row of a step counts.
    """
    rows = {}
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["step"], "eval/loss" in row] = row
    return [rows[key] for key in sorted(rows)]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
