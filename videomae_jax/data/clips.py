"""One clip of one video: which frames, which crop, which size."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from videomae_jax.data import sampling
from videomae_jax.data.decode import read_clip


@dataclass(frozen=True)
class PretrainSample:
    """The clip that pre-training sees: `sample(path, rng) -> uint8 [F, H, W, C]`.

    In training a random start and a random multi-scale crop; else the middle clip
    and the largest centred crop, whatever the rng. Both are resized bilinearly.
    Raises UnreadableVideo.
    """

    frames: int
    stride: int
    height: int
    width: int
    channels: int
    train: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C), the same for every clip."""
        return self.frames, self.height, self.width, self.channels

    def __call__(self, path: str | bytes, rng: np.random.Generator) -> np.ndarray:
        clip = read_clip(path, lambda count: self.indices(count, rng), channels=self.channels)
        box = self.box(clip.shape[2], clip.shape[1], rng)
        return resize_crop(clip, box=box, width=self.width, height=self.height)

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Which frames of `count`: int64 [F]."""
        span = dict(frames=self.frames, stride=self.stride)
        if not self.train:
            return sampling.middle_indices(count, **span)
        start = int(rng.integers(sampling.pretrain_starts(count, **span)))
        return sampling.pretrain_indices(count, start=start, **span)

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Which part of the picture: (x, y, width, height) in pixels."""
        target = dict(target_width=self.width, target_height=self.height)
        if not self.train:
            return sampling.center_crop_box(width, height, **target)
        pairs = sampling.multi_scale_pairs(width, height, **target)
        wide, high = pairs[rng.integers(len(pairs))]
        places = sampling.crop_offsets(width, height, crop_width=wide, crop_height=high)
        x, y = places[rng.integers(len(places))]
        return x, y, wide, high


def resize_crop(
    clip: np.ndarray, *, box: tuple[int, int, int, int], width: int, height: int
) -> np.ndarray:
    """Cut one box (x, y, width, height) out of all frames and resize it: uint8 [F, H, W, C].

    Pillow's bilinear filter, which averages where it shrinks, as in the reference.
    """
    x, y, wide, high = box
    cut = clip[:, y : y + high, x : x + wide]
    if (wide, high) == (width, height):
        return np.ascontiguousarray(cut)
    out = np.empty((len(clip), height, width, clip.shape[3]), np.uint8)
    grey = clip.shape[3] == 1
    for index, picture in enumerate(cut):
        image = Image.fromarray(picture[..., 0] if grey else picture)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        out[index] = resized[..., None] if grey else resized
    return out
