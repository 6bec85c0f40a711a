"""Resizing on the host is Pillow's, within one level, also at the border."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from videomae_jax.data.resize import MOST_SHRUNK, resize_crop

# Height and width, before and after.
SIZES = [
    *(((256, 224), (224, 224)), ((224, 256), (224, 224)), ((192, 224), (224, 224))),
    *(((256, 256), (224, 224)), ((168, 256), (224, 224)), ((360, 480), (224, 224))),
    *(((720, 721), (112, 112)), ((97, 65), (31, 131)), ((240, 241), (239, 240))),
    *(((5, 7), (3, 2)), ((3, 3), (1, 1)), ((300, 2), (150, 1)), ((12, 1), (6, 4))),
    *(((1, 1), (4, 4)), ((7, 7), (100, 100)), ((3, 37), (32, 64)), ((64, 2), (32, 48))),
    *(((8, 8), (100, 100)), ((9, 11), (5, 6)), ((16 * MOST_SHRUNK, 40), (16, 16))),
    ((4 * MOST_SHRUNK + 4, 9), (4, 5)),
]


def pictures(kind, size, channels):
    """Noise, or black and white, where an error of a weight shows most: uint8 [2, *size, C]."""
    noise = np.random.default_rng(0).integers(0, 256, (2, *size, channels)).astype(np.uint8)
    return noise if kind == "noise" else (noise > 127) * np.uint8(255)


def by_pillow(picture, size):
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["noise", "black and white"])
@pytest.mark.parametrize("size, target", SIZES)
def test_within_one_level_of_pillow(size, target, kind, channels):
    frames = pictures(kind, size, channels)
    box = (0, 0, size[1], size[0])
    resized = resize_crop(frames, box=box, width=target[1], height=target[0])
    assert resized.shape == (2, *target, channels) and resized.dtype == np.uint8
    for picture, made in zip(frames, resized, strict=True):
        assert np.abs(by_pillow(picture, target).astype(int) - made).max() <= 1


def test_nothing_outside_of_the_box_is_read():
    """Neither by the filter at the border, nor as a view of the whole picture."""
    frames = pictures("noise", (90, 120), 3)
    box = x, y, width, height = (11, 7, 81, 53)
    part = frames[:, y : y + height, x : x + width]
    alone = resize_crop(part.copy(), box=(0, 0, width, height), width=48, height=32)
    assert (resize_crop(frames, box=box, width=48, height=32) == alone).all()
    assert resize_crop(frames, box=box, width=width, height=height).base is frames


def test_threads_at_once_make_the_same_pixels():
    clips = [pictures("noise", (100 + 10 * index, 130), 3) for index in range(8)]

    def resize(clip):
        return resize_crop(clip, box=(0, 0, 130, clip.shape[1]), width=64, height=64)

    alone = [resize(clip) for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        for made, expected in zip(pool.map(resize, clips * 4), alone * 4, strict=True):
            assert (made == expected).all()
