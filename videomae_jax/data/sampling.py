"""Which frames of a video, and which part of the picture, make a clip.

Pure functions of a frame count or a picture size. Indices are int64, in
[0, count), sorted. The numbers are those of the released VideoMAE code; the
tests hold them against `tests/data/recipe_tables.json`.
"""

import numpy as np

# Multi-scale crops: shares of the largest box, widest first. Index into this
# tuple is what "the scales differ by at most one" counts.
SCALES = (1.0, 0.875, 0.75, 0.66)
# A crop this near to the size of the clip is made exactly that size, so that
# the most frequent crop needs no interpolation.
SNAP_PIXELS = 3
# Thirteen places of a crop in quarters of the free room (x, y): the corners, the
# centre, the middles of the sides, then the centres of the four quadrants.
QUARTERS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2),
    (0, 2), (4, 2), (2, 4), (2, 0),
    (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip


def pretrain_starts(count: int, *, frames: int, stride: int) -> int:
    """The number of first frames that pre-training draws from, at least 1."""
    return max(1, count - frames * stride + 1)


def pretrain_indices(count: int, *, start: int, frames: int, stride: int) -> np.ndarray:
    """Frames of a pre-training clip: exact stride, the last reachable one repeated. int64 [F]."""
    steps = np.arange(frames)
    if start + frames * stride > count:
        # The reference never steps onto the very last frame of a video that is
        # too short: 17 frames at stride 4 give 0 4 8 12 12 ..., without 16.
        steps = np.minimum(steps, max(0, count - 2 - start) // stride)
    return start + steps * stride


def dense_ends(count: int, *, frames: int, stride: int) -> range:
    """The `end` values that fine-tuning draws from; empty where the video is too short."""
    return range(frames * stride, count)


def dense_indices(count: int, *, end: int | None, frames: int, stride: int) -> np.ndarray:
    """Frames of a fine-tuning clip, evenly over the frames * stride ones before `end`. int64 [F].

    `end` is one of `dense_ends`, or None where that is empty: then the clip
    covers the whole video at about the same stride and repeats its last frame.
    The spacing is not whole: 0 4 8 12 17 ... at stride 4.
    """
    window = frames * stride
    if end is not None:
        places = np.linspace(end - window, end, frames)
    else:
        own = min(frames, count // stride)
        places = np.concatenate([np.linspace(0, count, own), np.full(frames - own, count)])
    last = (count if end is None else end) - 1
    return np.clip(places.astype(np.int64), 0, last)


def dense_views(count: int, *, segments: int, frames: int, stride: int) -> np.ndarray:
    """Frames of the test clips, spread evenly from the first to the last. int64 [segments, F].

    One segment is the middle clip.
    """
    thinned = np.arange(0, count, stride)
    free = max(0, len(thinned) - frames)
    if segments == 1:
        starts = np.array([free // 2])
    else:
        starts = np.array([int(free / (segments - 1) * view) for view in range(segments)])
    return thinned[np.minimum(starts[:, None] + np.arange(frames), len(thinned) - 1)]


def sparse_indices(count: int, rng: np.random.Generator, *, frames: int) -> np.ndarray:
    """One random frame in each of `frames` equal parts of the video. int64 [F]."""
    edges = np.arange(frames + 1) * count // frames
    return rng.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))


def sparse_views(count: int, *, frames: int, views: int = 2) -> np.ndarray:
    """Frames of the sparse test clips, each shifted by a part of the spacing. int64 [views, F]."""
    spacing = count / frames
    shifts = np.arange(views)[:, None] * spacing / views
    return (shifts + spacing * np.arange(frames)).astype(np.int64)


def middle_indices(count: int, *, frames: int, stride: int) -> np.ndarray:
    """Frames of the pre-training clip in the middle of the video. int64 [F]."""
    start = pretrain_starts(count, frames=frames, stride=stride) // 2
    return pretrain_indices(count, start=start, frames=frames, stride=stride)


def center_crop_box(
    width: int, height: int, *, target_width: int, target_height: int
) -> tuple[int, int, int, int]:
    """The largest centred box of the target's shape: (x, y, width, height), in pixels."""
    wide = max(1, min(width, round(height * target_width / target_height)))
    high = max(1, min(height, round(width * target_height / target_width)))
    return (width - wide) // 2, (height - high) // 2, wide, high


def view_boxes(
    width: int, height: int, *, target_width: int, target_height: int, crops: int
) -> list[tuple[int, int, int, int]]:
    """The largest boxes of the target's shape, evenly from one end of the picture to the other.

    (x, y, width, height) in pixels. Resized to the target they are the test crops: along the
    long side of a picture whose short side was resized. One crop is the centred one.
    """
    x, y, wide, high = center_crop_box(
        width, height, target_width=target_width, target_height=target_height
    )
    if crops == 1:
        return [(x, y, wide, high)]
    free_x, free_y = width - wide, height - high
    return [
        (free_x * place // (crops - 1), free_y * place // (crops - 1), wide, high)
        for place in range(crops)
    ]


def window_indices(count: int, *, frames: int, stride: int, hop: int) -> np.ndarray:
    """Frames of clips `hop` apart over the whole video, the last one at its end. int64 [n, F].

    A clip spans frames * stride; with that as hop they stand side by side. A video shorter
    than a clip repeats its last frame.
    """
    span = frames * stride
    starts = np.arange(0, max(1, count - span + 1), hop)
    if starts[-1] + span < count:
        starts = np.append(starts, count - span)
    return np.minimum(starts[:, None] + np.arange(frames) * stride, count - 1)


def multi_scale_pairs(
    width: int, height: int, *, target_width: int, target_height: int
) -> list[tuple[int, int]]:
    """Sizes (width, height) of the multi-scale crops, all within the picture.

    Each side is one of SCALES of the largest box of the target's shape (of the
    short side, for square clips); the two scales are at most one apart.
    """
    _, _, wide, high = center_crop_box(
        width, height, target_width=target_width, target_height=target_height
    )

    def sides(whole: int, target: int, limit: int) -> list[int]:
        sizes = [int(whole * scale) for scale in SCALES]
        snapped = [target if abs(size - target) < SNAP_PIXELS else size for size in sizes]
        return [min(max(size, 1), limit) for size in snapped]

    widths = sides(wide, target_width, width)
    heights = sides(high, target_height, height)
    return [(w, h) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]


def crop_offsets(
    width: int, height: int, *, crop_width: int, crop_height: int
) -> list[tuple[int, int]]:
    """The thirteen places (x, y) of a crop in a picture, in pixels."""
    across, down = (width - crop_width) // 4, (height - crop_height) // 4
    return [(x * across, y * down) for x, y in QUARTERS]
