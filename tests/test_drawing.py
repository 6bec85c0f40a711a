"""Boxes and labels on pictures: at the right pixels, inside the picture, not over each other."""

import numpy as np
import pytest

from videomae_jax import drawing
from videomae_jax.drawing import GREY, Label, class_colour, draw_boxes

RED, BLUE = (255, 0, 0), (0, 0, 255)


def where(picture, colour):
    """Return (left, top, right, bottom) around the pixels of a colour, the last two outside."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def ink(picture, *, of=255):
    """Return where the letters are: their edges are mixed with the background."""
    return np.abs(picture.astype(int) - of).max(-1) < 110


def blank(height=120, width=200):
    return np.full((height, width, 3), 7, np.uint8)


def test_the_edge_of_a_box_is_where_the_box_is():
    picture = blank()
    drawn = draw_boxes(picture, np.array([[0.25, 0.1, 0.75, 0.9]], np.float32), [[]])
    assert where(drawn, GREY) == (50, 12, 150, 108)
    # Lines of two pixels: the inside and the outside are untouched, and so is the argument.
    assert (drawn != 7).any(-1).sum() == 100 * 96 - 96 * 92
    assert (picture == 7).all()


def test_lines_and_text_grow_with_the_picture():
    drawn = draw_boxes(blank(1080, 1920), [[0.25, 0.5, 0.75, 0.75]], [[Label("run 0.93", RED)]])
    left, _, right, bottom = where(drawn, RED)
    assert (left, right, bottom) == (480, 1440, 810)
    line = round(1080 / drawing.LINE_DIVISOR)
    assert (drawn[810 - line : 810, 480:1440] == RED).all()
    assert (drawn[540 + line : 810 - line, 480 + line : 1440 - line] == 7).all()


def test_labels_are_stacked_above_their_box_in_its_order():
    labels = [Label("run 0.9", RED), Label("low 0.8", BLUE)]
    drawn = draw_boxes(blank(), [[0.25, 0.5, 0.75, 0.9]], [labels])
    assert where(drawn, RED)[0] == where(drawn, BLUE)[0] == 50
    assert where(drawn[:60], RED)[3] == where(drawn, BLUE)[1] and where(drawn, BLUE)[3] == 60
    # Readable: white on these two.
    assert ink(drawn[:60]).sum() > 50


def test_the_ink_is_black_on_a_light_label():
    drawn = draw_boxes(blank(), [[0.25, 0.5, 0.75, 0.9]], [[Label("run", (255, 255, 0))]])
    assert ink(drawn[49:59, 50:70], of=0).sum() > 10 and not ink(drawn).any()


@pytest.mark.parametrize(
    "box",
    [[0, 0, 0.2, 0.2], [0.9, 0.9, 1, 1], [0, 0, 1, 1], [0.95, 0, 1, 1], [-1, -1, 2, 2]],
)
def test_labels_at_the_border_are_whole(box):
    labels = [Label("cartwheel 0.93", RED), Label("low 0.5", BLUE)]
    middle = draw_boxes(blank(), [[0.2, 0.5, 0.4, 0.8]], [labels])
    drawn = draw_boxes(blank(), [box], [labels])
    assert (drawn == BLUE).all(-1).sum() == (middle == BLUE).all(-1).sum()
    assert ink(drawn).sum() == ink(middle).sum() > 50


def test_labels_of_neighbours_do_not_cover_each_other():
    boxes = [[0.3, 0.3, 0.5, 0.9], [0.4, 0.3, 0.6, 0.9], [0.35, 0.3, 0.55, 0.9]]
    colours = [RED, BLUE, (0, 90, 0)]
    drawn = draw_boxes(blank(), boxes, [[Label("near_other", colour)] for colour in colours])
    alone = draw_boxes(blank(), boxes[:1], [[Label("near_other", RED)]])
    assert ink(drawn).sum() == 3 * ink(alone).sum() > 100


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (40, 9), (9, 200), (3000, 17)])
def test_tiny_and_narrow_pictures(size):
    labels = [Label(f"a long name of a class {index}", class_colour(index)) for index in range(9)]
    boxes = [[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1], [0.6, 0.6, 0.4, 0.4]]
    drawn = draw_boxes(np.zeros((*size, 3), np.uint8), boxes, [labels, [], labels[:1], []])
    assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8 and drawn.any()


def test_a_label_wider_than_the_picture_is_shortened():
    text = "a very long name of a class"
    wide, narrow = (
        draw_boxes(blank(120, width), [[0, 0.5, 1, 1]], [[Label(text, RED)]]) for width in (400, 60)
    )
    assert 30 < ink(narrow).sum() < ink(wide).sum() / 2


def test_names_in_other_alphabets_are_not_all_the_same_square():
    drawn = [
        draw_boxes(blank(), [[0.2, 0.5, 0.9, 0.9]], [[Label(text, RED)]]) for text in ("бег", "été")
    ]
    assert (drawn[0] != drawn[1]).any()


def test_colours_of_classes_stay_and_differ():
    colours = [class_colour(index) for index in range(80)]
    assert len(set(colours)) == 80 and colours == [class_colour(index) for index in range(80)]
    for first, second in zip(colours, colours[1:], strict=False):
        assert np.abs(np.subtract(first, second)).sum() > 100
