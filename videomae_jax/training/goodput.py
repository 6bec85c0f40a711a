"""Account for the time of a run, over all its starts."""

import json
import time

from videomae_jax.paths import as_path, read_bytes, write_whole
from videomae_jax.training.workdir import GOODPUT


class Goodput:
    """The time account of a run, stored in WORKDIR/goodput.json.

    Useful time is the time of all steps that were not lost, without the time they waited for
    data. It is reported as a fraction of the wall time since the first start, which includes the
    time between two starts. A start that is killed is accounted for up to its last `write`.
    """

    def __init__(self, workdir: str):
        self._file = as_path(workdir) / GOODPUT
        try:
            self._book = json.loads(read_bytes(self._file))
        except (FileNotFoundError, json.JSONDecodeError):  # a loss of power may leave it empty
            # began: seconds since 1970. step: number of the last step.
            self._book = dict(began=time.time(), starts=0, step=0, steps=0, lost_steps=0)
            # Seconds of each kind:
            self._book |= dict(stepping=0.0, waiting=0.0, saving=0.0, evaluating=0.0)

    def begin(self, step: int) -> None:
        """Record a start after `step`; steps beyond it, of an earlier start, are lost."""
        book = self._book
        book["lost_steps"] += max(0, book["step"] - step)
        book["starts"] += 1
        book["step"] = step
        self.write()

    def stepped(self, step: int, *, seconds: float, waited: float) -> None:
        """Record the number of a step and its time, of which it `waited` for data."""
        self._book["step"] = step
        self._book["steps"] += 1
        self._book["stepping"] += seconds
        self._book["waiting"] += waited

    def paused(self, kind: str, seconds: float) -> None:
        """Record the time of "saving" or "evaluating"."""
        self._book[kind] += seconds

    def metrics(self) -> dict[str, float]:
        """Return useful_share (a fraction), restarts and lost_steps of the whole run."""
        book = self._book
        kept = 1 - book["lost_steps"] / max(book["steps"], 1)
        useful = kept * (book["stepping"] - book["waiting"])
        return {
            "useful_share": max(0.0, useful) / self._seconds,
            "restarts": max(0, book["starts"] - 1),
            "lost_steps": book["lost_steps"],
        }

    @property
    def _seconds(self) -> float:
        """The wall time since the first start; at least what is accounted for.

        The clock of another host, or one that was corrected, may be behind.
        """
        spent = sum(self._book[kind] for kind in ("stepping", "saving", "evaluating"))
        return max(time.time() - self._book["began"], spent, 1e-9)

    def __str__(self) -> str:
        """Return one line for the end of a run."""
        book = self._book
        parts = [
            f"{book[kind] / self._seconds:.0%} {words}"
            for kind, words in (
                ("waiting", "waiting for data"),
                ("saving", "saving"),
                ("evaluating", "evaluating"),
            )
        ]
        counts = self.metrics()
        return (
            f"{counts['useful_share']:.0%} of {self._seconds:,.0f} s since the first start were "
            f"training, {', '.join(parts)}; {counts['restarts']} restarts, "
            f"{counts['lost_steps']} steps lost"
        )

    def write(self) -> None:
        """Write the account to its file."""
        write_whole(self._file, json.dumps(self._book))
