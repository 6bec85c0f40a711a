"""Images and videos of reconstructions, and the training curve of a run.

All arrays are numpy: an input video is uint8 [F, H, W, C] with 1 or 3 channels, an image is
uint8 [h, w, 3], a video of panels uint8 [F, h, w, 3].
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomae_jax.errors import UserError
from videomae_jax.models.reconstruct import Reconstruction

SHEET_FRAMES = 6
COLUMNS = ("original", "masked", "reconstruction", "error")
CELL = 200  # about the side of a panel, in pixels
GAP = 6
MARGIN = 12
TEXT, LINE = 15, 24  # size of the letters, height of their line
INK, FAINT, PAPER = (32, 32, 36), (112, 112, 118), (255, 255, 255)
# A mean error of half the range is as bad as it gets in practice; dark panels say nothing.
FULL_ERROR = 0.5
ERROR_SCALE = f"error: black is 0, white is {FULL_ERROR:.0%} of a pixel's range or more"


def film(
    original: np.ndarray,
    reconstructions: dict[str, Reconstruction],
    *,
    times: Sequence[int],
    captions: Sequence[str],
) -> np.ndarray:
    """Lay out one row `original | masked | reconstruction | error` for each reconstruction.

    original: uint8 [F, H, W, C]. reconstructions: of that one clip, [F, H, W, C] each, by the
    text above their row. times: the F frame numbers shown. captions: lines at the bottom.
    """
    original = _enlarge(_colour(original))
    count, height, width = original.shape[:3]
    row_height, column_width = LINE + height + GAP, max(width, *map(_length, COLUMNS)) + GAP
    page = _page(
        wide=max(len(COLUMNS) * column_width - GAP, *map(_length, reconstructions)),
        high=LINE + len(reconstructions) * row_height,
        captions=[*captions, ERROR_SCALE],
    )
    for column, name in enumerate(COLUMNS):
        _write(page, (MARGIN + column * column_width, MARGIN), name)
    for row, title in enumerate(reconstructions):
        _write(page, (MARGIN, MARGIN + LINE + row * row_height), title)

    frames = np.repeat(np.array(page)[None], count, axis=0)
    for frame, time in zip(frames, times, strict=True):
        picture = Image.fromarray(frame)
        corner = (page.width - MARGIN, page.height - MARGIN)
        _write(picture, corner, f"frame {time}", ink=FAINT, anchor="rd")
        frame[:] = picture
    for row, reconstruction in enumerate(reconstructions.values()):
        y = MARGIN + 2 * LINE + row * row_height
        for column, panel in enumerate([original, *map(_enlarge, _panels(reconstruction))]):
            x = MARGIN + column * column_width
            frames[:, y : y + height, x : x + width] = panel
    return frames


def sheet(
    original: np.ndarray,
    reconstructions: dict[str, Reconstruction],
    *,
    times: Sequence[int],
    captions: Sequence[str],
) -> np.ndarray:
    """Lay out the same as `film` in one picture: a row for each panel, time to the right.

    SHEET_FRAMES of the F frames are shown, evenly from the first to the last.
    """
    shown = np.unique(np.linspace(0, len(times) - 1, SHEET_FRAMES).round().astype(int))
    original = _enlarge(_colour(original[shown]))
    height, width = original.shape[1:3]
    names = [f"frame {times[index]}" for index in shown]
    column_width = max([width, *map(_length, names)]) + GAP
    side = max(map(_length, COLUMNS)) + MARGIN
    block_height = LINE + (len(COLUMNS) - 1) * (height + GAP)
    page = _page(
        wide=side + max(len(shown) * column_width - GAP, *map(_length, reconstructions)),
        high=LINE + height + GAP + len(reconstructions) * block_height,
        captions=[*captions, ERROR_SCALE],
    )

    def put(y: int, name: str, panel: np.ndarray) -> None:
        _write(page, (MARGIN, y + height // 2), name, anchor="lm")
        for column, cell in enumerate(panel):
            page.paste(Image.fromarray(cell), (MARGIN + side + column * column_width, y))

    for column, name in enumerate(names):
        _write(page, (MARGIN + side + column * column_width, MARGIN), name)
    y = MARGIN + LINE
    put(y, COLUMNS[0], original)
    y += height + GAP
    for title, reconstruction in reconstructions.items():
        _write(page, (MARGIN + side, y), title)
        y += LINE
        for name, panel in zip(COLUMNS[1:], _panels(reconstruction), strict=True):
            put(y, name, _enlarge(panel[shown]))
            y += height + GAP
    return np.array(page)


def summary_image(video: np.ndarray, reconstruction: Reconstruction) -> np.ndarray:
    """Lay out the middle frames of clips uint8 [B, F, H, W, C] as [h, w, 3], without text.

    One row for each clip: original, masked, reconstruction, error.
    """
    middle = video.shape[1] // 2
    panels = [_colour(video[:, middle])]
    panels += [panel[:, middle] for panel in _panels(reconstruction)]
    cells = np.pad(np.stack(panels, axis=1), [(0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)])
    clips, columns, height, width, _ = cells.shape
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(clips * height, columns * width, 3)
    return picture[:-GAP, :-GAP]


def check_ending(path: str) -> str:
    """Return how the name of a picture file ends; UserError for what `write` cannot write."""
    ending = Path(path).suffix.lower()
    if ending not in (".gif", ".mp4", ".png"):
        raise UserError(
            f"{path!r} ends in {ending or 'nothing'}: use .gif or .mp4 (a video), "
            ".png (a contact sheet)"
        )
    return ending


def write(
    path: str,
    original: np.ndarray,
    reconstructions: dict[str, Reconstruction],
    *,
    times: Sequence[int],
    captions: Sequence[str],
    fps: int,
) -> None:
    """Write a `film` as .gif or .mp4, or a contact `sheet` as .png, by the ending of the path."""
    ending = check_ending(path)
    if ending == ".png":
        write_png(path, sheet(original, reconstructions, times=times, captions=captions))
    else:
        write_film = write_gif if ending == ".gif" else write_mp4
        frames = film(original, reconstructions, times=times, captions=captions)
        write_film(path, frames, fps=fps)


def write_gif(path: str, frames: np.ndarray, *, fps: int) -> None:
    """Write a video as an endless GIF. GIFs count time in 1/100 s, so fps is rounded."""
    # One palette for all frames: with its own for each, a still background flickers.
    some = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(np.concatenate(some)).quantize(256)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
    )


def write_mp4(path: str, frames: np.ndarray, *, fps: int) -> None:
    """Write a video as H.264 for every player: yuv420p, sides padded to even numbers."""
    import av

    _, height, width, _ = frames.shape
    frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_png(path: str, picture: np.ndarray) -> None:
    """Write one image."""
    Image.fromarray(picture).save(path)


def plot_curve(rows: Sequence[dict], path: str) -> None:
    """Draw `curve_figure` into a .png file."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path!r} does not end in .png, the one format of curves")
    curve_figure(rows).savefig(path, dpi=130)


def curve_figure(rows: Sequence[dict]):
    """Draw the losses and the learning rate of a run against its step: a matplotlib Figure.

    rows: those of metrics.jsonl, {"step", "loss", "lr"} while training and {"step",
    "eval/loss"} at evaluations, each with its ratio to predicting zero, "vs_zero" and
    "eval/vs_zero", and its "r2", where the task has them; other keys do no harm.
    Raises UserError when no row has a loss.
    """
    # Slow to import. Figures made without pyplot need no display and no global state.
    from matplotlib.figure import Figure

    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(row["step"], row[name]) for row in rows if name in row]
        x, y = np.asarray(points, np.float64).reshape(-1, 2).T
        finite = np.isfinite(y)  # a skipped step may have any loss
        return x[finite], y[finite]

    step, loss = series("loss")
    held_step, held_loss = series("eval/loss")
    if not len(step) + len(held_step):
        raise UserError(f'none of {len(rows)} rows has a "loss": give those of a metrics.jsonl')

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    wide = len(loss) // 40  # neighbours on each side that a point is averaged with
    if wide:
        above.plot(step, loss, color="tab:blue", alpha=0.3, linewidth=0.8)
    label = f"training (mean of {2 * wide + 1} points)" if wide else "training"
    if len(step):
        above.plot(step, _smooth(loss, wide), color="tab:blue", linewidth=1.8, label=label)
    if len(held_step):
        held = dict(color="tab:orange", marker="o", markersize=4, linewidth=1.8)
        above.plot(held_step, held_loss, label="held out", **held)
    prefix = "eval/" if len(held_step) else ""

    def level(score: str, share) -> float | None:
        """The loss that `share` of a score is relative to, over all rows that have one."""
        name = prefix + score
        levels = [row[prefix + "loss"] / share(row[name]) for row in rows if name in row]
        return np.nanmean(levels) if levels else None

    # Two lines for plain pixels; for normalized ones, whose mean is zero, they are the same.
    zero = level("vs_zero", lambda vs_zero: vs_zero)
    mean = level("r2", lambda r2: 1 - r2)
    if mean and zero and abs(mean / zero - 1) > 0.05:
        label = f"predicting the mean: {mean:#.3g}"
        above.axhline(mean, color="0.4", linestyle=":", linewidth=1.2, label=label)
    if zero:
        label = f"predicting zero: {zero:#.3g}"
        above.axhline(zero, color="0.4", linestyle="--", linewidth=1.2, label=label)
    everything = np.concatenate([loss, held_loss])
    if everything.min() > 0 and max(everything.max(), zero or 0) > 10 * everything.min():
        above.set_yscale("log")  # else all but the beginning lies on the axis
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


def _smooth(values: np.ndarray, wide: int) -> np.ndarray:
    """Average each value with up to `wide` on each side, as many as both sides have."""
    index = np.arange(len(values))
    # An uneven window at the ends would hide how high the loss began.
    half = np.minimum(wide, np.minimum(index, index[::-1]))
    total = np.concatenate([[0], np.cumsum(values)])
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


def _panels(reconstruction: Reconstruction) -> list[np.ndarray]:
    """What is shown beside the original, uint8 [..., H, W, 3] each, in the order of COLUMNS."""
    masked, predicted, error = map(np.asarray, reconstruction[:3])
    # From black through red and yellow to white.
    heat = np.clip(error.mean(-1, keepdims=True) / FULL_ERROR, 0, 1) * 3 - np.arange(3)
    heat = np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    return [_colour(masked), _colour(predicted), heat]


def _colour(video: np.ndarray) -> np.ndarray:
    """[..., C] with 1 or 3 channels -> [..., 3]."""
    return np.broadcast_to(video, (*video.shape[:-1], 3))


def _enlarge(video: np.ndarray) -> np.ndarray:
    """[F, H, W, 3] to about CELL pixels a side, by whole factors: a pixel stays a sharp square."""
    factor = max(1, round(CELL / max(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow brings this one; a system's fonts may be missing.
    return ImageFont.load_default(TEXT)


def _length(text: str) -> int:
    return round(_font().getlength(text) + 0.5)


def _page(*, wide: int, high: int, captions: Sequence[str]) -> Image.Image:
    """A picture with wide x high pixels to fill and the captions under them."""
    # The end of the last line stays free for the number of the frame.
    wide = max(wide, *map(_length, [*captions, captions[-1] + "    frame 000000"]))
    high += len(captions) * LINE
    page = Image.new("RGB", (wide + 2 * MARGIN, high + 2 * MARGIN), PAPER)
    for line, text in enumerate(captions, start=1 - len(captions)):
        _write(page, (MARGIN, MARGIN + high + line * LINE), text, ink=FAINT, anchor="ld")
    return page


def _write(page: Image.Image, place: tuple[int, int], text: str, *, ink=INK, anchor="la") -> None:
    ImageDraw.Draw(page).text(place, text, fill=ink, font=_font(), anchor=anchor)
