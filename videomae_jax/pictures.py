"""Images and videos of reconstructions.

All arrays are numpy: an input video is uint8 [F, H, W, C] with 1 or 3 channels, an image is
uint8 [h, w, 3], a video of panels uint8 [F, h, w, 3].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomae_jax.errors import UserError
from videomae_jax.models.reconstruct import Reconstruction
from videomae_jax.paths import to_write, writing

SHEET_FRAMES = 6  # shown in a contact sheet
COLUMNS = ("original", "masked", "reconstruction", "error")
# In pixels. A panel has sides of about CELL.
CELL = 200
GAP = 6
MARGIN = 12
FONT_SIZE = 15
LINE_HEIGHT = 24
INK = (32, 32, 36)
FAINT_INK = (112, 112, 118)
PAPER = (255, 255, 255)
# Errors are rarely larger than half the range; a larger scale would leave the panels dark.
FULL_ERROR = 0.5
ERROR_SCALE = f"error: black is 0, white is {FULL_ERROR:.0%} of a pixel's range or more"


def panel_video(
    original: np.ndarray,
    reconstructions: dict[str, Reconstruction],
    *,
    times: Sequence[int],
    captions: Sequence[str],
) -> np.ndarray:
    """Lay out one row `original | masked | reconstruction | error` for each reconstruction.

    original: uint8 [F, H, W, C]. reconstructions: of that clip, [F, H, W, C] each, by the title
    above their row. times: the F frame numbers to show. captions: lines at the bottom. Returns
    uint8 [F, h, w, 3].
    """
    original = _enlarge(_to_rgb(original))
    count, height, width = original.shape[:3]
    row_height = LINE_HEIGHT + height + GAP
    column_width = max(width, *map(_text_width, COLUMNS)) + GAP
    page = _page(
        width=max(len(COLUMNS) * column_width - GAP, *map(_text_width, reconstructions)),
        height=LINE_HEIGHT + len(reconstructions) * row_height,
        captions=[*captions, ERROR_SCALE],
    )
    for column, name in enumerate(COLUMNS):
        _write(page, (MARGIN + column * column_width, MARGIN), name)
    for row, title in enumerate(reconstructions):
        _write(page, (MARGIN, MARGIN + LINE_HEIGHT + row * row_height), title)

    frames = np.repeat(np.array(page)[None], count, axis=0)
    for frame, time in zip(frames, times, strict=True):
        image = Image.fromarray(frame)
        corner = (page.width - MARGIN, page.height - MARGIN)
        _write(image, corner, f"frame {time}", ink=FAINT_INK, anchor="rd")
        frame[:] = image
    for row, reconstruction in enumerate(reconstructions.values()):
        y = MARGIN + 2 * LINE_HEIGHT + row * row_height
        for column, panel in enumerate([original, *map(_enlarge, _panels(reconstruction))]):
            x = MARGIN + column * column_width
            frames[:, y : y + height, x : x + width] = panel
    return frames


def contact_sheet(
    original: np.ndarray,
    reconstructions: dict[str, Reconstruction],
    *,
    times: Sequence[int],
    captions: Sequence[str],
) -> np.ndarray:
    """Lay out the same as `panel_video` in one image: a row for each panel, time to the right.

    SHEET_FRAMES of the F frames are shown, evenly spaced from the first to the last. Returns
    uint8 [h, w, 3].
    """
    shown = np.unique(np.linspace(0, len(times) - 1, SHEET_FRAMES).round().astype(int))
    original = _enlarge(_to_rgb(original[shown]))
    height, width = original.shape[1:3]
    names = [f"frame {times[index]}" for index in shown]
    column_width = max([width, *map(_text_width, names)]) + GAP
    side = max(map(_text_width, COLUMNS)) + MARGIN
    block_height = LINE_HEIGHT + (len(COLUMNS) - 1) * (height + GAP)
    page = _page(
        width=side + max(len(shown) * column_width - GAP, *map(_text_width, reconstructions)),
        height=LINE_HEIGHT + height + GAP + len(reconstructions) * block_height,
        captions=[*captions, ERROR_SCALE],
    )

    def put(y: int, name: str, panel: np.ndarray) -> None:
        _write(page, (MARGIN, y + height // 2), name, anchor="lm")
        for column, cell in enumerate(panel):
            page.paste(Image.fromarray(cell), (MARGIN + side + column * column_width, y))

    for column, name in enumerate(names):
        _write(page, (MARGIN + side + column * column_width, MARGIN), name)
    y = MARGIN + LINE_HEIGHT
    put(y, COLUMNS[0], original)
    y += height + GAP
    for title, reconstruction in reconstructions.items():
        _write(page, (MARGIN + side, y), title)
        y += LINE_HEIGHT
        for name, panel in zip(COLUMNS[1:], _panels(reconstruction), strict=True):
            put(y, name, _enlarge(panel[shown]))
            y += height + GAP
    return np.array(page)


def summary_image(video: np.ndarray, reconstruction: Reconstruction) -> np.ndarray:
    """Lay out the middle frames of clips uint8 [B, F, H, W, C] as [h, w, 3], without text.

    One row for each clip: original, masked, reconstruction, error.
    """
    middle = video.shape[1] // 2
    panels = [_to_rgb(video[:, middle])]
    panels += [panel[:, middle] for panel in _panels(reconstruction)]
    cells = np.pad(np.stack(panels, axis=1), [(0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)])
    clips, columns, height, width, _ = cells.shape
    image = cells.transpose(0, 2, 1, 3, 4).reshape(clips * height, columns * width, 3)
    return image[:-GAP, :-GAP]


def check_ending(path: str) -> str:
    """Return the ending of a file name; raise UserError if `write` cannot write such a file."""
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
    """Write a `panel_video` as .gif or .mp4, or a `contact_sheet` as .png.

    Raises UserError for another ending, and if the file cannot be written.
    """
    ending = check_ending(path)
    with writing(path), to_write(path) as file:
        if ending == ".png":
            image = contact_sheet(original, reconstructions, times=times, captions=captions)
            Image.fromarray(image).save(file)
        else:
            write_video = write_gif if ending == ".gif" else write_mp4
            frames = panel_video(original, reconstructions, times=times, captions=captions)
            write_video(str(file), frames, fps=fps)


def write_gif(path: str, frames: np.ndarray, *, fps: int) -> None:
    """Write a video as a looping GIF; fps is rounded, as a GIF stores times in 1/100 s."""
    # One palette for all frames: with a palette per frame, a still background flickers.
    some = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(np.concatenate(some)).quantize(256)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
    )


def write_mp4(path: str, frames: np.ndarray, *, fps: int) -> None:
    """Write a video as H.264 that every player reads: yuv420p, sides padded to even numbers."""
    from videomae_jax.data.encode import FilmWriter

    _, height, width, _ = frames.shape
    with FilmWriter(path, height=height, width=width, rate=fps, quality=16) as film:
        for index, frame in enumerate(frames):
            film.add(frame, start=index / fps, end=(index + 1) / fps)


def _panels(reconstruction: Reconstruction) -> list[np.ndarray]:
    """Return the panels beside the original, uint8 [..., H, W, 3], in the order of COLUMNS."""
    masked, predicted, error = map(np.asarray, reconstruction[:3])
    # From black through red and yellow to white.
    heat = np.clip(error.mean(-1, keepdims=True) / FULL_ERROR, 0, 1) * 3 - np.arange(3)
    heat = np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    return [_to_rgb(masked), _to_rgb(predicted), heat]


def _to_rgb(video: np.ndarray) -> np.ndarray:
    """Return a video [..., C] of 1 or 3 channels as [..., 3]."""
    return np.broadcast_to(video, (*video.shape[:-1], 3))


def _enlarge(video: np.ndarray) -> np.ndarray:
    """Enlarge [F, H, W, 3] to sides of about CELL, by a whole factor to keep pixels sharp."""
    factor = max(1, round(CELL / max(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # This font is part of Pillow; the fonts of a system may be missing.
    return ImageFont.load_default(FONT_SIZE)


def _text_width(text: str) -> int:
    return round(_font().getlength(text) + 0.5)


def _page(*, width: int, height: int, captions: Sequence[str]) -> Image.Image:
    """Return an image with width x height pixels to fill and the captions below them."""
    # The end of the last line stays free for the frame number.
    width = max(width, *map(_text_width, [*captions, captions[-1] + "    frame 000000"]))
    height += len(captions) * LINE_HEIGHT
    page = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    for line, text in enumerate(captions, start=1 - len(captions)):
        _write(
            page, (MARGIN, MARGIN + height + line * LINE_HEIGHT), text, ink=FAINT_INK, anchor="ld"
        )
    return page


def _write(
    page: Image.Image,
    position: tuple[int, int],
    text: str,
    *,
    ink: tuple[int, int, int] = INK,
    anchor: str = "la",
) -> None:
    """Write a text at (x, y); anchor: the point of the text that is there, as in Pillow."""
    ImageDraw.Draw(page).text(position, text, fill=ink, font=_font(), anchor=anchor)
