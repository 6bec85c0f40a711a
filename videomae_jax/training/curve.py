"""The training curve of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from videomae_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curve(rows: Sequence[dict], path: str) -> None:
    """Write `curve_figure` as a .png file."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path!r} does not end in .png, the one format of curves")
    curve_figure(rows).savefig(path, dpi=130)


def curve_figure(rows: Sequence[dict]) -> "Figure":
    """Return a figure of the losses and the learning rate of a run against its step.

    rows: of metrics.jsonl, {"step", "loss", "lr"} of training and {"step", "eval/loss"} of
    evaluations. Both may have the ratio to the loss of predicting zero ("vs_zero",
    "eval/vs_zero") and "r2"; other keys are ignored. Raises UserError if no row has a loss.
    """
    # Slow to import. Without pyplot there is no global state, and no display is needed.
    from matplotlib.figure import Figure

    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(row["step"], row[name]) for row in rows if name in row]
        x, y = np.asarray(points, np.float64).reshape(-1, 2).T
        finite = np.isfinite(y)  # the loss of a skipped step may be NaN
        return x[finite], y[finite]

    step, loss = series("loss")
    held_step, held_loss = series("eval/loss")
    if not len(step) + len(held_step):
        raise UserError(f'none of {len(rows)} rows has a "loss": give those of a metrics.jsonl')

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    reach = len(loss) // 40  # neighbours on each side that a point is averaged with
    label = "training"
    if reach:
        above.plot(step, loss, color="tab:blue", alpha=0.3, linewidth=0.8)
        label = f"training (mean of {2 * reach + 1} points)"
    if len(step):
        above.plot(step, _smooth(loss, reach), color="tab:blue", linewidth=1.8, label=label)
    if len(held_step):
        above.plot(
            held_step,
            held_loss,
            label="held out",
            color="tab:orange",
            marker="o",
            markersize=4,
            linewidth=1.8,
        )
    zero, mean = _baselines(rows, prefix="eval/" if len(held_step) else "")
    # Two lines for plain pixels. Normalized pixels have mean zero, so their two lines coincide.
    if mean and zero and abs(mean / zero - 1) > 0.05:
        label = f"predicting the mean: {mean:#.3g}"
        above.axhline(mean, color="0.4", linestyle=":", linewidth=1.2, label=label)
    if zero:
        label = f"predicting zero: {zero:#.3g}"
        above.axhline(zero, color="0.4", linestyle="--", linewidth=1.2, label=label)
    everything = np.concatenate([loss, held_loss])
    if everything.min() > 0 and max(everything.max(), zero or 0) > 10 * everything.min():
        above.set_yscale("log")  # on a linear scale, all but the beginning lies on the axis
    above.set_ylabel("loss")
    above.legend(framealpha=0.9, edgecolor="none")
    below.plot(*series("lr"), color="tab:green", linewidth=1.5)
    below.set(xlabel="step", ylabel="learning rate")
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", scilimits=(0, 0))
    for axes in (above, below):
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    return figure


def _baselines(rows: Sequence[dict], *, prefix: str) -> tuple[float | None, float | None]:
    """Return the losses of predicting zero and of predicting the mean, None if unknown."""
    zero, mean = [], []
    for row in rows:
        if f"{prefix}vs_zero" in row:
            zero.append(row[f"{prefix}loss"] / row[f"{prefix}vs_zero"])
        if f"{prefix}r2" in row:
            mean.append(row[f"{prefix}loss"] / (1 - row[f"{prefix}r2"]))
    return (
        float(np.nanmean(zero)) if zero else None,
        float(np.nanmean(mean)) if mean else None,
    )


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Average each value with up to `reach` values on each side, equally many on both sides."""
    index = np.arange(len(values))
    # An uneven window at the ends would hide the initial loss.
    half = np.minimum(reach, np.minimum(index, index[::-1]))
    total = np.concatenate([[0], np.cumsum(values)])
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)
