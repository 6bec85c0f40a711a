"""The training curve: what is drawn, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from videomae_jax.errors import UserError
from videomae_jax.training.curve import curve_figure, plot_curve


def metrics(count=200):
    rows = []
    for step in range(1, count + 1):
        loss = 0.4 + 0.5 / step
        rows.append({"step": step, "loss": loss, "vs_zero": loss / 0.9, "lr": step * 1e-5})
        if step % 20 == 0:
            rows.append({"step": step, "eval/loss": loss + 0.1, "eval/vs_zero": (loss + 0.1) / 0.8})
    return rows


def lines(figure):
    """Label -> (x, y) of the lines above, and the line below."""
    above, below = figure.axes
    named = {line.get_label(): line.get_data() for line in above.lines}
    return named, below.lines[0].get_data()


def test_a_curve_has_losses_the_level_of_zero_and_the_rate(tmp_path):
    rows = metrics()
    named, (steps, rates) = lines(curve_figure(rows))
    x, y = named["training (mean of 11 points)"]
    assert list(x) == list(steps) == list(range(1, 201))
    # Not smeared at the ends; the mean of eleven within.
    losses = np.array([row["loss"] for row in rows if "loss" in row])
    np.testing.assert_allclose(
        y[[0, 1, 100, 199]], [0.9, losses[:3].mean(), losses[95:106].mean(), losses[-1]]
    )
    np.testing.assert_allclose(rates, steps * 1e-5)
    assert list(named["held out"][0]) == list(range(20, 201, 20))
    np.testing.assert_allclose(named["held out"][1][-1], 0.5025)
    np.testing.assert_allclose(named["predicting zero: 0.800"][1], 0.8)

    plot_curve(rows, str(tmp_path / "curve.png"))
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 800 and picture.height > 500


def test_a_curve_without_evaluations_takes_the_level_of_training():
    rows = [row for row in metrics(30) if "loss" in row] + [{"step": 31, "loss": float("nan")}]
    named, _ = lines(curve_figure(rows))
    assert set(named) == {"training", "predicting zero: 0.900"}
    assert len(named["training"][0]) == 30  # the step that was skipped is not drawn


def test_a_curve_of_plain_pixels_is_logarithmic_and_knows_the_mean():
    rows = [{"step": 1, "loss": 0.1, "vs_zero": 0.5, "r2": -1.0, "lr": 1.0}]
    rows += [{"step": 2, "loss": 0.01, "vs_zero": 0.05, "r2": 0.8, "lr": 1.0}]
    figure = curve_figure(rows)
    assert {"predicting zero: 0.200", "predicting the mean: 0.0500"} <= set(lines(figure)[0])
    assert figure.axes[0].get_yscale() == "log"


def test_a_curve_of_nothing_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="none of 1 rows"):
        curve_figure([{"step": 1, "lr": 0.1}])
    with pytest.raises(UserError, match="does not end in .png"):
        plot_curve(metrics(), str(tmp_path / "curve.pdf"))
