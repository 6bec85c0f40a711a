"""Draw boxes and their labels on images."""

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
# Left, top, right and bottom in pixels; the last two are outside of the rectangle.
Rectangle = tuple[int, int, int, int]

GREY: Colour = (190, 190, 190)  # a box without labels
# The smallest size in pixels; in larger images it is the short side divided by the second number.
FONT_SIZE, FONT_DIVISOR = 10, 36
# Lines of one pixel would lose their colour: videos store one colour for four pixels.
LINE_WIDTH, LINE_DIVISOR = 2, 240
# Weight of the covered pixels of persons; those of other labels have weight 1.
PERSON_COST = 0.2


class Label(NamedTuple):
    """A line of text at a box, written on a background of this colour."""

    text: str
    colour: Colour


def class_colour(index: int) -> Colour:
    """Return the colour of a class, which differs from those of the classes next to it."""
    # The golden ratio spreads any number of hues evenly.
    hue = index * 0.618034 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.6)[index % 2], (1.0, 0.85)[index // 2 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    picture: np.ndarray, boxes: np.ndarray, labels: Sequence[Sequence[Label]]
) -> np.ndarray:
    """Return the image, uint8 [H, W, 3], with boxes on it; see `render_boxes`."""
    height, width = picture.shape[:2]
    drawn, where = render_boxes(boxes, labels, height=height, width=width)
    return np.where(where, drawn, picture)


def render_boxes(
    boxes: np.ndarray, labels: Sequence[Sequence[Label]], *, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a rectangle and stacked labels for each box.

    Returns the pixels, uint8 [H, W, 3], and which of them are drawn, bool [H, W, 1].
    boxes: [n, 4], x1, y1, x2, y2 as fractions of width and height. labels: for each box, the most
    important one first; it gives the rectangle its colour. All labels stay inside the image:
    text that is too wide is shortened, and labels that do not fit below each other are left out.
    """
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    short = min(image.size)
    line = max(LINE_WIDTH, round(short / LINE_DIVISOR))
    font = _font(max(FONT_SIZE, round(short / FONT_DIVISOR)))
    edges = [_pixels(box, image.size) for box in np.asarray(boxes, float).tolist()]
    for (left, top, right, bottom), own in zip(edges, labels, strict=True):
        colour = own[0].colour if own else GREY
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)
    taken: list[Rectangle] = []
    for edge, own in zip(edges, labels, strict=True):
        lines, size = _fit(own, font, image.size)
        if lines:
            place = _place(edge, size, image.size, taken=taken, people=edges)
            taken.append(place)
            _write(draw, place, lines, font)
    drawn = np.asarray(image)
    return drawn[..., :3], drawn[..., 3:] > 0


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """Return a box in pixels, inside the image and at least one pixel large."""
    left, right = (min(max(round(x * size[0]), 0), size[0]) for x in box[::2])
    top, bottom = (min(max(round(y * size[1]), 0), size[1]) for y in box[1::2])
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    # Pillow's own font has ASCII only.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return round(font.getlength(text) + 0.5) + 2 * _margin(font)


def _margin(font: ImageFont.FreeTypeFont) -> int:
    return max(1, round(font.size / 6))


def _fit(
    labels: Sequence[Label], font: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> tuple[list[Label], tuple[int, int]]:
    """Return the labels that fit into an image, shortened, and the size of their stack."""
    lines = []
    for label in labels[: size[1] // _line_height(font)]:
        text = label.text
        while len(text) > 1 and _text_width(text, font) > size[0]:
            text = text[:-2] + "…"
        lines.append(Label(text, label.colour))
    width = max((_text_width(line.text, font) for line in lines), default=0)
    return lines, (min(width, size[0]), len(lines) * _line_height(font))


def _place(
    box: Rectangle,
    size: tuple[int, int],
    picture: tuple[int, int],
    *,
    taken: Sequence[Rectangle],
    people: Sequence[Rectangle],
) -> Rectangle:
    """Return the position where a stack of labels covers least, above the box if possible."""
    left, top, right, bottom = box
    width, height = size
    corners = [
        (left, top - height),
        (left, bottom),
        (right, top),
        (left - width, top),
        (left, top),
        (left, bottom - height),
    ]
    places = []
    for x, y in corners:
        x = min(max(x, 0), picture[0] - width)
        y = min(max(y, 0), picture[1] - height)
        places.append((x, y, x + width, y + height))

    def cost(place: Rectangle) -> float:
        covered = sum(_overlap(place, person) for person in people)
        return sum(_overlap(place, other) for other in taken) + PERSON_COST * covered

    return min(places, key=cost)  # the first of equals


def _overlap(first: Rectangle, second: Rectangle) -> int:
    """Return the number of pixels that two rectangles share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _write(
    draw: ImageDraw.ImageDraw,
    place: Rectangle,
    lines: Sequence[Label],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write the lines below each other, each on a background as wide as its text."""
    left, top, right, _ = place
    for line in lines:
        width = min(_text_width(line.text, font), right - left)
        height = _line_height(font)
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=line.colour)
        # Luma of the background decides which ink can be read on it.
        red, green, blue = line.colour
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128
        ink = (255, 255, 255) if dark else (0, 0, 0)
        draw.text((left + _margin(font), top), line.text, fill=ink, font=font)
        top += height
