"""Draw docs/method.png: a real clip on its way through VideoMAE.

videomae train --config=demo --workdir=WORKDIR --config.mask.kind=tube --config.mask.ratio=0.5
python experiments/method_figure.py WORKDIR

This example hides half of a 6 x 6 grid; the recipes hide 90 % of 14 x 14, which the figure says.
"""

import argparse

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Polygon

import videomae_jax as vm
from videomae_jax.inference.network import build_network
from videomae_jax.models.masking import draw_mask
from videomae_jax.models.reconstruct import reconstruct
from videomae_jax.models.tokens import patch_grid

VIDEO = "data/mocap_studio/val/walk/walk_003.mp4"
INK, BLUE, ORANGE = "#22303c", "#2f6db3", "#d9822b"
SHOWN = 4  # frames of a stack
STEP = 0.16  # from one frame of a stack to the next, in widths of a frame


def stack(ax, frames: np.ndarray, x: float, *, grid: int = 0) -> None:
    """Draw frames behind each other, the first in front, with a grid of patches if asked for."""
    for depth in reversed(range(SHOWN)):
        left, low = x + depth * STEP, depth * STEP
        box = [left, left + 1, low, low + 1]
        ax.imshow(frames[depth], extent=box, zorder=10 - depth, interpolation="nearest")
        ax.plot(
            [left, left + 1, left + 1, left, left],
            [low, low, low + 1, low + 1, low],
            color=INK,
            lw=1.2,
            zorder=10.5 - depth,
        )
        for line in range(1, grid):
            at = line / grid
            style = dict(color="white", lw=0.5, alpha=0.7, zorder=10.4 - depth)
            ax.plot([left + at, left + at], [low, low + 1], **style)
            ax.plot([left, left + 1], [low + at, low + at], **style)


def network(ax, x: float, heights: tuple[float, float], name: str, color: str) -> None:
    """Draw an encoder or a decoder as a trapezoid around the middle line."""
    middle, width, (left, right) = 0.74, 1.0, heights
    corners = [
        (x, middle - left / 2),
        (x, middle + left / 2),
        (x + width, middle + right / 2),
        (x + width, middle - right / 2),
    ]
    ax.add_patch(Polygon(corners, facecolor=color, edgecolor=INK, lw=1.2, joinstyle="round"))
    style = dict(color="white", ha="center", va="center", fontsize=16, fontweight="bold")
    ax.text(x + width / 2, middle, name, **style)


def arrow(ax, start: float, end: float) -> None:
    style = dict(arrowstyle="-|>", mutation_scale=18, lw=2, color=INK, shrinkA=0, shrinkB=0)
    ax.add_patch(FancyArrowPatch((start, 0.74), (end, 0.74), **style))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", help="of the demo's model")
    parser.add_argument("--out", default="docs/method.png", help="(%(default)s)")
    args = parser.parse_args()
    draw(args.workdir, args.out)


def draw(workdir: str, out: str) -> None:
    """Reconstruct one clip, and draw clip, tubelets, mask, networks and reconstruction."""
    model = vm.load(workdir)
    frames, patch = model.config.clip.frames, tuple(model.config.model.patch)
    clip = vm.read_clip(
        VIDEO, frames=frames, stride=model.config.clip.stride, size=model.config.clip.height
    )
    grid = patch_grid(clip.shape[:3], patch)
    mask = draw_mask(jax.random.key(3)[None], "tube", grid=grid, ratio=model.config.mask.ratio)
    result = reconstruct(
        build_network(model.config),
        model.params,
        clip[None],
        mask,
        normalized=model.config.normalized_targets,
        statistics="visible",
    )
    times = np.linspace(0, frames - 1, SHOWN).round().astype(int)
    masked, predicted = np.asarray(result.masked[0]), np.asarray(result.predicted[0])

    figure, ax = plt.subplots(figsize=(16, 4.1), dpi=100)
    starts = 0.0, 2.0, 4.0, 6.05, 7.65, 9.25
    stack(ax, clip[times], starts[0])
    stack(ax, clip[times], starts[1], grid=grid[1])
    stack(ax, masked[times], starts[2])
    network(ax, starts[3], (1.3, 0.7), "encoder", BLUE)
    network(ax, starts[4], (0.5, 1.1), "decoder", ORANGE)
    stack(ax, predicted[times], starts[5])
    for start, end in ((1.55, 1.93), (3.55, 3.93), (5.55, 6.0), (7.1, 7.6), (8.7, 9.18)):
        arrow(ax, start, end)
    labels = (
        (starts[0] + 0.5, "clip", f"{frames} frames"),
        (starts[1] + 0.5, "tubelets", f"{patch[0]} x {patch[1]} x {patch[2]} pixels"),
        (starts[2] + 0.5, "tube mask", "same in every frame"),
        (starts[3] + 0.5, "sees 10 %", "here 50 %"),
        (starts[4] + 0.5, "predicts", "hidden pixels"),
        (starts[5] + 0.5, "reconstruction", "of a held-out clip"),
    )
    for x, title, note in labels:
        ax.text(x, -0.12, title, ha="center", va="top", fontsize=17, fontweight="bold", color=INK)
        ax.text(x, -0.34, note, ha="center", va="top", fontsize=13, color=INK)
    ax.set(xlim=(-0.1, starts[5] + 1.6), ylim=(-0.58, 1.58))
    ax.set_aspect("equal")
    ax.axis("off")
    figure.savefig(out, bbox_inches="tight", pad_inches=0.1, facecolor="white")


if __name__ == "__main__":
    main()
