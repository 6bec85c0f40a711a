"""Frame indices and crop boxes of clips.

Pure functions of the number of frames or of the image size. Indices are int64, in [0, count),
sorted. The numbers are those of the released VideoMAE code; the tests compare them with
`tests/data/recipe_tables.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ByTime:
    """A choice of frames by their times.

    choose: a function of the seconds at which frames appear, float64 [count + 1], see
    `decode.open_frames`; returns the indices of frames.
    """

    choose: Callable[[np.ndarray], np.ndarray]


# How a reader of videos is told which frames to return: a function of the number of frames, or of
# their times. The indices that it returns are in any order.
Choose = Callable[[int], np.ndarray] | ByTime


def make_choice(choose: Choose, count: int, seconds: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the frames that `choose` picks of `count`; `seconds` is only called if needed."""
    return np.asarray(choose.choose(seconds()) if isinstance(choose, ByTime) else choose(count))


# Multi-scale crops: fractions of the largest box, in decreasing order. Width and height of a crop
# use entries of this tuple that are at most one apart.
SCALES = (1.0, 0.875, 0.75, 0.66)
# A crop whose size differs by less than this from the clip gets exactly the size of the clip, so
# that the most frequent crop needs no interpolation.
SNAP_PIXELS = 3
# Thirteen positions of a crop (x, y), in quarters of the margin: the corners, the centre, the
# middles of the sides, then the centres of the four quadrants.
QUARTERS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2),
    (0, 2), (4, 2), (2, 4), (2, 0),
    (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip


def pretrain_starts(count: int, *, frames: int, stride: int) -> int:
    """Return the number of start frames that pre-training draws from, at least 1."""
    return max(1, count - frames * stride + 1)


def pretrain_indices(count: int, *, start: int, frames: int, stride: int) -> np.ndarray:
    """Return the frames of a pre-training clip, int64 [F].

    The stride is exact; in a short video the last reachable frame is repeated.
    """
    steps = np.arange(frames)
    if start + frames * stride > count:
        # The reference never uses the last frame of a video that is too short: 17 frames at
        # stride 4 give 0 4 8 12 12 ..., without 16.
        steps = np.minimum(steps, max(0, count - 2 - start) // stride)
    return start + steps * stride


def dense_ends(count: int, *, frames: int, stride: int) -> range:
    """Return the `end` values that fine-tuning draws from; empty if the video is too short."""
    return range(frames * stride, count)


def dense_indices(count: int, *, end: int | None, frames: int, stride: int) -> np.ndarray:
    """Return the frames of a fine-tuning clip, int64 [F].

    They are evenly spaced over the frames * stride frames before `end`, one of `dense_ends`. If
    that is empty, `end` is None: the clip covers the whole video at about the same stride and
    repeats its last frame. The spacing is not an integer: 0 4 8 12 17 ... at stride 4.
    """
    window = frames * stride
    if end is not None:
        points = np.linspace(end - window, end, frames)
    else:
        distinct = min(frames, count // stride)
        repeated = np.full(frames - distinct, count)
        points = np.concatenate([np.linspace(0, count, distinct), repeated])
    last = (count if end is None else end) - 1
    return np.clip(points.astype(np.int64), 0, last)


def dense_views(count: int, *, segments: int, frames: int, stride: int) -> np.ndarray:
    """Return the frames of the test clips, int64 [segments, F].

    The clips are evenly spaced from the start to the end of the video; a single one is in the
    middle.
    """
    thinned = np.arange(0, count, stride)
    free = max(0, len(thinned) - frames)
    if segments == 1:
        starts = np.array([free // 2])
    else:
        starts = np.array([int(free / (segments - 1) * view) for view in range(segments)])
    return thinned[np.minimum(starts[:, None] + np.arange(frames), len(thinned) - 1)]


def sparse_indices(count: int, rng: np.random.Generator, *, frames: int) -> np.ndarray:
    """Draw one frame from each of `frames` equal parts of the video: int64 [F]."""
    edges = np.arange(frames + 1) * count // frames
    return rng.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))


def sparse_views(count: int, *, frames: int, views: int = 2) -> np.ndarray:
    """Return the frames of the sparse test clips, int64 [views, F].

    Each clip is shifted by 1 / views of the spacing between frames.
    """
    spacing = count / frames
    shifts = np.arange(views)[:, None] * spacing / views
    return (shifts + spacing * np.arange(frames)).astype(np.int64)


def middle_indices(count: int, *, frames: int, stride: int) -> np.ndarray:
    """Return the frames of the pre-training clip in the middle of the video: int64 [F]."""
    start = pretrain_starts(count, frames=frames, stride=stride) // 2
    return pretrain_indices(count, start=start, frames=frames, stride=stride)


def center_crop_box(
    width: int, height: int, *, target_width: int, target_height: int
) -> tuple[int, int, int, int]:
    """Return the largest centred box of the target's aspect ratio: (x, y, width, height)."""
    box_width = max(1, min(width, round(height * target_width / target_height)))
    box_height = max(1, min(height, round(width * target_height / target_width)))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def view_boxes(
    width: int, height: int, *, target_width: int, target_height: int, crops: int
) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the test crops: (x, y, width, height) in pixels.

    They are the largest boxes of the target's aspect ratio, evenly spaced from one end of the
    image to the other; a single one is centred. Resized to the target, they equal crops along
    the long side of an image whose short side was resized.
    """
    x, y, box_width, box_height = center_crop_box(
        width, height, target_width=target_width, target_height=target_height
    )
    if crops == 1:
        return [(x, y, box_width, box_height)]
    margin_x, margin_y = width - box_width, height - box_height
    return [
        (margin_x * crop // (crops - 1), margin_y * crop // (crops - 1), box_width, box_height)
        for crop in range(crops)
    ]


def window_indices(count: int, *, frames: int, stride: int, hop: int) -> np.ndarray:
    """Return the frames of clips `hop` frames apart, the last one at the end: int64 [n, F].

    A clip spans frames * stride frames; with a hop of that length the clips do not overlap. A
    video shorter than a clip repeats its last frame.
    """
    span = frames * stride
    starts = np.arange(0, max(1, count - span + 1), hop)
    if starts[-1] + span < count:
        starts = np.append(starts, count - span)
    return np.minimum(starts[:, None] + np.arange(frames) * stride, count - 1)


def key_frame_offsets(*, frames: int, stride: int) -> np.ndarray:
    """Return the frames of a clip relative to its key frame, int64 [F], as the AVA recipe does.

    They are in the middle of F windows of `stride` frames, half of them before the key frame:
    -31, -27, ..., -3, 1, ..., 29 for 16 frames at stride 4.
    """
    return stride * (np.arange(frames) - frames // 2) + (stride - 1) // 2


def nearest_frames(seconds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the frames that appear nearest to some times: int64, the shape of `times`.

    seconds: float64 [count + 1], when each frame appears and when the last one ends. Times before
    the first or after the last frame give that frame.
    """
    return np.searchsorted((seconds[1:-1] + seconds[:-2]) / 2, times)


def window_runs(seconds: np.ndarray, times: np.ndarray, *, around: float) -> list[np.ndarray]:
    """Return the frames nearest to any moment at most `around` seconds from one of some times.

    seconds: as in `nearest_frames`. Returns runs of consecutive frames, int64 [...] each.
    """
    inside = np.zeros(len(seconds) - 1, bool)
    first = nearest_frames(seconds, times - around)
    last = nearest_frames(seconds, times + around)
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        inside[begin : end + 1] = True
    frames = np.flatnonzero(inside)
    return np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)


def scale_to_short_side(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """Return the size (width, height) of images after resizing their short side.

    The long side is rounded down, as the AVA recipe does.
    """
    if width < height:
        return short_side, height * short_side // width
    return width * short_side // height, short_side


def multi_scale_pairs(
    width: int, height: int, *, target_width: int, target_height: int
) -> list[tuple[int, int]]:
    """Return the sizes (width, height) of the multi-scale crops, none larger than the image.

    Each side is one of SCALES times that of the largest box of the target's aspect ratio (of the
    short side, for square clips); the two scales are at most one entry apart.
    """
    _, _, box_width, box_height = center_crop_box(
        width, height, target_width=target_width, target_height=target_height
    )

    def sides(whole: int, target: int, limit: int) -> list[int]:
        sizes = [int(whole * scale) for scale in SCALES]
        snapped = [target if abs(size - target) < SNAP_PIXELS else size for size in sizes]
        return [min(max(size, 1), limit) for size in snapped]

    widths = sides(box_width, target_width, width)
    heights = sides(box_height, target_height, height)
    return [(w, h) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]


def crop_offsets(
    width: int, height: int, *, crop_width: int, crop_height: int
) -> list[tuple[int, int]]:
    """Return the thirteen positions (x, y) of a crop in an image, in pixels."""
    step_x, step_y = (width - crop_width) // 4, (height - crop_height) // 4
    return [(x * step_x, y * step_y) for x, y in QUARTERS]
