"""Draw boxes and actions on key frames, to check offsets and the order of axes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from videomae_jax.data.decode import UnreadableVideo
from videomae_jax.data.sampling import ByTime, nearest_frames
from videomae_jax.data.videos import Videos
from videomae_jax.drawing import Label, class_colour, draw_boxes

SIDE = 320  # pixels of the long side of an image
COLUMNS = 4  # of the contact sheet
CAPTION = 14  # height in pixels of the line below an image


class Picture(NamedTuple):
    """A key frame with its boxes.

    image: uint8 [H, W, 3]; None if the key frame cannot be read, for `reason`.
    """

    caption: str
    image: np.ndarray | None
    reason: str


def draw_key_frames(
    videos: Videos, indices: Sequence[int], *, threads: int, report: Callable[[int], None]
) -> list[Picture]:
    """Decode key frames and draw their boxes. report: called with the number of finished ones."""
    pictures = []
    with ThreadPoolExecutor(threads) as pool:
        for picture in pool.map(lambda index: _draw(videos, index), indices):
            pictures.append(picture)
            report(len(pictures))
    return pictures


def _draw(videos: Videos, index: int) -> Picture:
    frames = videos.key_frames
    assert frames is not None
    caption = f"{frames.names[index]}, second {frames.stamps[index]:g}"
    second = frames.seconds[[index]]
    choose = ByTime(lambda seconds: nearest_frames(seconds, second))
    try:
        frame = videos.read_clip(index, choose, channels=3)[0]
    except UnreadableVideo as error:
        return Picture(caption, None, str(error))
    image = Image.fromarray(frame)
    scale = SIDE / max(image.size)
    # Small images are enlarged so that the labels can be read.
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    rows = frames.of(index)
    labels = [_labels(videos, row) for row in range(rows.start, rows.stop)]
    return Picture(caption, draw_boxes(resized, frames.boxes[rows], labels), "")


def _labels(videos: Videos, row: int) -> list[Label]:
    """Return the actions of a box, or the score of the person for a detected box."""
    frames = videos.key_frames
    assert frames is not None
    names = videos.class_names or ()
    actions = np.flatnonzero(frames.targets[row]).tolist()
    labels = [Label(names[action], class_colour(action)) for action in actions]
    if not labels and frames.scores[row] < 1:
        labels = [Label(f"{frames.scores[row]:.2f}", class_colour(0))]
    return labels


def make_sheet(pictures: Sequence[Picture]) -> Image.Image:
    """Return a contact sheet of the readable key frames, with captions."""
    shown = [(picture.image, picture.caption) for picture in pictures if picture.image is not None]
    height = max(image.shape[0] for image, _ in shown) + CAPTION
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (min(COLUMNS, len(shown)) * SIDE, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(shown):
        x, y = number % COLUMNS * SIDE, number // COLUMNS * height
        sheet.paste(Image.fromarray(image), (x, y))
        draw.text((x + 2, y + height - CAPTION), caption, fill="black")
    return sheet
