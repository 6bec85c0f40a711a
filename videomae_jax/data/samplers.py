"""Samplers: which frames, which crop and which size make a clip of a video.

Pillow and PyAV are imported when they are used: tasks import this module, and benchmarks of them
run without.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from videomae_jax.data import sampling
from videomae_jax.data.videos import Videos

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
Rngs = Sequence[np.random.Generator]


class ClipSampler(Protocol):
    """Makes clips of videos, all of one shape.

    `sample_many` does all the work. The other methods are its steps, for callers that decode
    by themselves: `frame_indices`, then `crop_boxes`, which draws from the same generators, then
    `crop`. R is the number of clips, one for each generator.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, H, W, C), or (V, F, H, W, C) for all views of a video."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""

    @property
    def sized(self) -> bool:
        """Whether a clip may fill only the top left part of `shape`."""

    def __call__(self, videos: Videos, index: int, rng: np.random.Generator) -> np.ndarray:
        """Make one clip of video `index`: uint8 [*shape]. Raises UnreadableVideo."""

    def sample_many(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        """Make R clips from one decode: uint8 [R, *shape] and sizes int32 [R, 2].

        A size is the height and the width that the clip fills. Raises UnreadableVideo.
        """

    def decode(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        """Return the arguments of `crop`: decoded frames and boxes. Raises UnreadableVideo."""

    def frame_indices(self, index: int, count: int, rngs: Rngs) -> np.ndarray:
        """Draw frames of video `index`, which has `count`: int64 [R * F], clip after clip."""

    def crop_boxes(self, width: int, height: int, rngs: Rngs) -> np.ndarray:
        """Draw boxes in images of this size: int32 [R, boxes, 4], each x, y, width, height."""

    def crop(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut clips out of frames uint8 [R * F, H, W, C]; returns what `sample_many` does."""


class BaseSampler(ABC):
    """A `ClipSampler` made of functions of a single clip: `indices`, `boxes`, `cut` and `size`."""

    channels: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of a clip."""

    @abstractmethod
    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of a clip of a video with `count` frames: int64 [...]."""

    @abstractmethod
    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """Draw the boxes of a clip in images of this size."""

    @abstractmethod
    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Make the clip, uint8 [*shape], of its frames uint8 [F, H, W, C] and boxes."""

    def size(self, boxes: Sequence[Box]) -> tuple[int, int]:
        """Return the height and the width that a clip fills."""
        return self.shape[-3], self.shape[-2]

    @property
    def sized(self) -> bool:
        return False

    def __call__(self, videos: Videos, index: int, rng: np.random.Generator) -> np.ndarray:
        return self.sample_many(videos, index, [rng])[0][0]

    def sample_many(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        return self.crop(*self.decode(videos, index, rngs))

    def decode(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        frames = videos.read_clip(
            index, lambda count: self.frame_indices(index, count, rngs), channels=self.channels
        )
        return frames, self.crop_boxes(frames.shape[2], frames.shape[1], rngs)

    def frame_indices(self, index: int, count: int, rngs: Rngs) -> np.ndarray:
        return np.concatenate([self.indices(count, rng).ravel() for rng in rngs])

    def crop_boxes(self, width: int, height: int, rngs: Rngs) -> np.ndarray:
        return np.array([self.boxes(width, height, rng) for rng in rngs], np.int32)

    def crop(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = np.split(frames, len(boxes))
        clips = [self.cut(part, box) for part, box in zip(parts, boxes.tolist(), strict=True)]
        sizes = [self.size(box) for box in boxes.tolist()]
        # A single clip is not copied.
        stacked = np.stack(clips) if len(clips) > 1 else np.ascontiguousarray(clips[0])[None]
        return stacked, np.array(sizes, np.int32)


@dataclass(frozen=True, kw_only=True)
class CropSampler(BaseSampler):
    """A clip of one box in all its frames, at random in training, centred otherwise.

    The box is resized bilinearly to height x width. With a `canvas`, a (height, width) no
    smaller than those, it is copied unchanged to the top left corner of the canvas, and the
    device resizes it; only a box larger than the canvas is resized here.
    """

    frames: int
    height: int
    width: int
    channels: int
    train: bool
    canvas: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C), of the canvas if there is one."""
        height, width = self.canvas or (self.height, self.width)
        return self.frames, height, width, self.channels

    @property
    def sized(self) -> bool:
        """Whether a clip may fill only the top left part of `shape`."""
        return self.canvas is not None

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draw the largest box of the shape of the clip: in training at a random position.

        The random resized crop of fine-tuning, done on the device, is at most 4/3 as wide as
        high. A 4:3 box at a random position of a wide image contains every such crop that the
        whole image contains.
        """
        x, y, box_width, box_height = sampling.center_crop_box(
            width, height, target_width=self.width, target_height=self.height
        )
        if self.train:
            x = int(rng.integers(width - box_width + 1))
            y = int(rng.integers(height - box_height + 1))
        return x, y, box_width, box_height

    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """Draw the one box of the clip."""
        return [self.box(width, height, rng)]

    def size(self, boxes: Sequence[Box]) -> tuple[int, int]:
        """Return the height and the width that a clip fills."""
        _, _, width, height = boxes[0]
        if self.canvas and height <= self.canvas[0] and width <= self.canvas[1]:
            return height, width
        return self.height, self.width

    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Cut the box out of the frames, and resize it or put it on the canvas."""
        height, width = self.size(boxes)
        part = resize_crop(frames, box=boxes[0], width=width, height=height)
        if not self.canvas:
            return part
        clip = np.zeros(self.shape, np.uint8)
        clip[:, :height, :width] = part
        return clip


@dataclass(frozen=True, kw_only=True)
class PretrainSampler(CropSampler):
    """The clip of pre-training.

    In training a random start and a random multi-scale crop; otherwise the middle clip and the
    largest centred crop.
    """

    stride: int

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of a video with `count`: int64 [F]."""
        if not self.train:
            return sampling.middle_indices(count, frames=self.frames, stride=self.stride)
        starts = sampling.pretrain_starts(count, frames=self.frames, stride=self.stride)
        start = int(rng.integers(starts))
        return sampling.pretrain_indices(count, start=start, frames=self.frames, stride=self.stride)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draw one of the multi-scale crops."""
        if not self.train:
            return super().box(width, height, rng)
        sizes = sampling.multi_scale_pairs(
            width, height, target_width=self.width, target_height=self.height
        )
        crop_width, crop_height = sizes[rng.integers(len(sizes))]
        offsets = sampling.crop_offsets(
            width, height, crop_width=crop_width, crop_height=crop_height
        )
        x, y = offsets[rng.integers(len(offsets))]
        return x, y, crop_width, crop_height


@dataclass(frozen=True, kw_only=True)
class ViewPairSampler(PretrainSampler):
    """The clip of contrastive pre-training: the frames of pre-training, in the box of fine-tuning.

    The two clips of a video are drawn independently.
    """

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draw the largest box of the shape of the clip; the device crops it."""
        return CropSampler.box(self, width, height, rng)


@dataclass(frozen=True, kw_only=True)
class DenseSampler(CropSampler):
    """The clip of fine-tuning on short actions, such as Kinetics.

    The frames of `sampling.dense_indices`: in training before a random end, otherwise the
    middle clip.
    """

    stride: int

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of a video with `count`: int64 [F]."""
        if not self.train:
            return sampling.dense_views(count, segments=1, frames=self.frames, stride=self.stride)[
                0
            ]
        ends = sampling.dense_ends(count, frames=self.frames, stride=self.stride)
        end = int(rng.choice(ends)) if ends else None
        return sampling.dense_indices(count, end=end, frames=self.frames, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class SparseSampler(CropSampler):
    """The clip of fine-tuning on actions that take the whole video, such as Something-Something.

    The frames of `sampling.sparse_indices`; in evaluation those of the first test clip.
    """

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of a video with `count`: int64 [F]."""
        if not self.train:
            return sampling.sparse_views(count, frames=self.frames, views=1)[0]
        return sampling.sparse_indices(count, rng, frames=self.frames)


@dataclass(frozen=True)
class ViewSampler(BaseSampler):
    """All test clips of a video from one decode, uint8 [V, F, H, W, C].

    V = segments * crops: each segment in time, in each crop. A `stride` of None is sparse
    sampling. Nothing is random. `counts` collects the number of frames of each video read.
    """

    frames: int
    stride: int | None
    height: int
    width: int
    channels: int
    segments: int
    crops: int
    counts: dict[int, int] = field(default_factory=dict, compare=False)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(V, F, H, W, C)."""
        views = self.segments * self.crops
        return views, self.frames, self.height, self.width, self.channels

    @property
    def span(self) -> int:
        """Frames from the first to the last of a clip; shorter videos repeat some."""
        return self.frames if self.stride is None else (self.frames - 1) * self.stride + 1

    def frame_indices(self, index: int, count: int, rngs: Rngs) -> np.ndarray:
        """Return the frames of all clips, and store `count` in `counts`."""
        self.counts[index] = count
        return super().frame_indices(index, count, rngs)

    def indices(self, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the frames of all segments of a video with `count`: int64 [segments, F]."""
        if self.stride is None:
            return sampling.sparse_views(count, frames=self.frames, views=self.segments)
        return sampling.dense_views(
            count, segments=self.segments, frames=self.frames, stride=self.stride
        )

    def boxes(self, width: int, height: int, rng: np.random.Generator | None = None) -> list[Box]:
        """Return the box of each crop."""
        return sampling.view_boxes(
            width, height, target_width=self.width, target_height=self.height, crops=self.crops
        )

    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Cut each box out of each segment, and resize it."""
        crops = np.stack(
            [resize_crop(frames, box=box, width=self.width, height=self.height) for box in boxes]
        )
        # [crops, segments * F, ...] -> [segments * crops, F, ...]
        crops = crops.reshape(self.crops, self.segments, *self.shape[1:])
        return np.ascontiguousarray(crops.swapaxes(0, 1).reshape(self.shape))


def distinct_views(sampler: ViewSampler, videos: Videos, *, most: int = 16) -> tuple[int, int]:
    """Return how many different (segments, crops) the videos allow, at most the sampler's.

    The maximum over `most` evenly spaced videos; (0, 0) if none of them can be read.
    """
    from videomae_jax.data.decode import UnreadableVideo

    segments = crops = 0
    for index in range(0, len(videos), -(-len(videos) // most)):
        counts: list[int] = []

        def choose(count: int, counts: list[int] = counts) -> np.ndarray:
            counts.append(count)
            return np.zeros(1, np.int64)

        try:
            clip = videos.read_clip(index, choose, channels=sampler.channels)
        except UnreadableVideo:
            continue  # evaluation lists it
        segments = max(segments, len(np.unique(sampler.indices(counts[0]), axis=0)))
        crops = max(crops, len(set(sampler.boxes(clip.shape[2], clip.shape[1]))))
    return segments, crops


def resize_crop(clip: np.ndarray, *, box: Box, width: int, height: int) -> np.ndarray:
    """Cut a box out of all frames and resize it: uint8 [F, height, width, C].

    Uses Pillow's bilinear filter, which averages when it shrinks, as the reference does. A box
    that already has this size is returned as a view.
    """
    from PIL import Image

    x, y, box_width, box_height = box
    part = clip[:, y : y + box_height, x : x + box_width]
    if (box_width, box_height) == (width, height):
        return part
    out = np.empty((len(clip), height, width, clip.shape[3]), np.uint8)
    grey = clip.shape[3] == 1
    for index, frame in enumerate(part):
        image = Image.fromarray(frame[..., 0] if grey else frame)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        out[index] = resized[..., None] if grey else resized
    return out
