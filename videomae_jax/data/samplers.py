"""One clip of one video: which frames, which crop, which size."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from videomae_jax.data import sampling
from videomae_jax.data.decode import UnreadableVideo
from videomae_jax.data.videos import Videos

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


class ClipSampler:
    """Makes clips of a video: `sampler(videos, index, rng) -> uint8 [*sampler.shape]`.

    A kind of sampler has `shape`, `channels` and three pure functions: `indices(count, rng)`,
    which frames, int64 [...]; `boxes(width, height, rng)`, which parts of the picture; and
    `cut(frames, boxes)`, the clip. Clips of `sized` samples may fill only a part of `shape`.
    """

    sized = False

    def __call__(self, videos: Videos, index: int, rng: np.random.Generator) -> np.ndarray:
        return self.sample_many(videos, index, [rng])[0][0]

    def sample_many(
        self, videos: Videos, index: int, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make a clip with each rng, from one decode: uint8 [R, *shape], sizes int32 [R, 2].

        A size is the height and the width that a clip fills.
        """
        return self.crop(*self.decode(videos, index, rngs))

    def decode(
        self, videos: Videos, index: int, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode what the clips take, and draw their boxes: what `cut_all` is given."""
        frames = videos.read_clip(
            index, lambda count: self.frame_indices(index, count, rngs), channels=self.channels
        )
        return frames, self.crop_boxes(frames.shape[2], frames.shape[1], rngs)

    def frame_indices(
        self, index: int, count: int, rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """Which frames of video `index`, of `count`, the clips have, one clip after the other."""
        return np.concatenate([self.indices(count, rng).ravel() for rng in rngs])

    def crop_boxes(
        self, width: int, height: int, rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """Which boxes the clips have, drawn after `choose`: int32 [R, boxes, 4]."""
        return np.array([self.boxes(width, height, rng) for rng in rngs], np.int32)

    def crop(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The clips of the chosen frames [R * frames, H, W, C] and their sizes."""
        parts = np.split(frames, len(boxes))
        clips = [self.cut(part, box) for part, box in zip(parts, boxes.tolist(), strict=True)]
        sizes = [self.size(box) for box in boxes.tolist()]
        stacked = np.stack(clips) if len(clips) > 1 else np.ascontiguousarray(clips[0])[None]
        return stacked, np.array(sizes, np.int32)

    def size(self, boxes: Sequence[Box]) -> tuple[int, int]:
        """The height and the width that a clip fills."""
        return self.shape[-3], self.shape[-2]


@dataclass(frozen=True, kw_only=True)
class CropSampler(ClipSampler):
    """One box of the chosen frames, uint8 [F, H, W, C], at random in training.

    Resized bilinearly to height x width; or, with a canvas, a height and a width no less than
    those, put into the top left corner of that as it is, for the device to resize. Only a box
    larger than the canvas is resized here.
    """

    frames: int
    height: int
    width: int
    channels: int
    train: bool
    canvas: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C), the same for every clip."""
        return self.frames, *(self.canvas or (self.height, self.width)), self.channels

    @property
    def sized(self) -> bool:
        """Whether clips fill only a part of `shape`."""
        return self.canvas is not None

    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """The one box of the clip."""
        return [self.box(width, height, rng)]

    def size(self, boxes: Sequence[Box]) -> tuple[int, int]:
        """The height and the width that a clip fills."""
        _, _, wide, high = boxes[0]
        fits = self.canvas and high <= self.canvas[0] and wide <= self.canvas[1]
        return (high, wide) if fits else (self.height, self.width)

    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """The box of the frames, resized or on its canvas."""
        high, wide = self.size(boxes)
        part = resize_crop(frames, box=boxes[0], width=wide, height=high)
        if not self.canvas:
            return part
        clip = np.zeros(self.shape, np.uint8)
        clip[:, :high, :wide] = part
        return clip


@dataclass(frozen=True, kw_only=True)
class PretrainSampler(CropSampler):
    """The clip that pre-training sees.

    In training a random start and a random multi-scale crop; else the middle clip
    and the largest centred crop, whatever the rng. Raises UnreadableVideo.
    """

    stride: int

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Which frames of `count`: int64 [F]."""
        span = dict(frames=self.frames, stride=self.stride)
        if not self.train:
            return sampling.middle_indices(count, **span)
        start = int(rng.integers(sampling.pretrain_starts(count, **span)))
        return sampling.pretrain_indices(count, start=start, **span)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Which part of the picture: (x, y, width, height) in pixels."""
        target = dict(target_width=self.width, target_height=self.height)
        if not self.train:
            return sampling.center_crop_box(width, height, **target)
        pairs = sampling.multi_scale_pairs(width, height, **target)
        wide, high = pairs[rng.integers(len(pairs))]
        places = sampling.crop_offsets(width, height, crop_width=wide, crop_height=high)
        x, y = places[rng.integers(len(places))]
        return x, y, wide, high


@dataclass(frozen=True, kw_only=True)
class DenseSampler(PretrainSampler):
    """The clip that fine-tuning sees where actions are short, as Kinetics.

    The frames of `sampling.dense_indices`, in training before a random end. The picture in
    training: the largest box of the shape of the clip, at a random place. The random
    resized crop, done on the device, is at most 4/3 as wide as high: in a 4:3 box at
    any place of a wide picture it finds whatever it could find in the whole picture.
    In evaluation the middle clip and the centred box.
    """

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Which frames of `count`: int64 [F]."""
        span = dict(frames=self.frames, stride=self.stride)
        if not self.train:
            return sampling.dense_views(count, segments=1, **span)[0]
        ends = sampling.dense_ends(count, **span)
        end = int(rng.choice(ends)) if ends else None
        return sampling.dense_indices(count, end=end, **span)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Which part of the picture: (x, y, width, height) in pixels."""
        return _shape_box(self, width, height, rng)


@dataclass(frozen=True, kw_only=True)
class SparseSampler(CropSampler):
    """The clip that fine-tuning sees where actions take the whole video, as Something-Something.

    The frames of `sampling.sparse_indices`, in evaluation of the first of the test clips; the
    picture as in `DenseSampler`.
    """

    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Which frames of `count`: int64 [F]."""
        if not self.train:
            return sampling.sparse_views(count, frames=self.frames, views=1)[0]
        return sampling.sparse_indices(count, rng, frames=self.frames)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Which part of the picture: (x, y, width, height) in pixels."""
        return _shape_box(self, width, height, rng)


@dataclass(frozen=True)
class ViewSampler(ClipSampler):
    """All test clips of one video at once, uint8 [V, F, H, W, C], from one pass over the file.

    V = segments * crops: each segment in time in each crop. `stride` None is sparse sampling.
    `counts` collects the number of frames of each video that is read. Raises UnreadableVideo.
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
        """(V, F, H, W, C), the same for every video."""
        views = self.segments * self.crops
        return views, self.frames, self.height, self.width, self.channels

    def frame_indices(
        self, index: int, count: int, rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """As of any sampler; remembers the number of frames."""
        self.counts[index] = count
        return super().frame_indices(index, count, rngs)

    @property
    def span(self) -> int:
        """Frames from the first to the last of a clip; shorter videos repeat some."""
        return self.frames if self.stride is None else (self.frames - 1) * self.stride + 1

    def indices(self, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Which frames of `count`, whatever the rng: int64 [segments, F]."""
        if self.stride is None:
            return sampling.sparse_views(count, frames=self.frames, views=self.segments)
        return sampling.dense_views(
            count, segments=self.segments, frames=self.frames, stride=self.stride
        )

    def boxes(self, width: int, height: int, rng: np.random.Generator | None = None) -> list[Box]:
        """The box of each crop."""
        target = dict(target_width=self.width, target_height=self.height)
        return sampling.view_boxes(width, height, crops=self.crops, **target)

    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Each segment in each box, resized."""
        size = dict(width=self.width, height=self.height)
        crops = np.stack([resize_crop(frames, box=box, **size) for box in boxes], axis=0)
        # [crops, segments * F, ...] -> [segments * crops, F, ...]
        crops = crops.reshape(self.crops, self.segments, *self.shape[1:])
        return np.ascontiguousarray(crops.swapaxes(0, 1).reshape(self.shape))


def distinct_views(sampler: ViewSampler, videos: Videos, *, most: int = 16) -> tuple[int, int]:
    """Return how many different (segments, crops) videos allow, at most those of the sampler.

    The largest numbers of `most` videos, evenly out of all; (0, 0) when none of them is read.
    """
    found = [(0, 0)]
    for index in range(0, len(videos), -(-len(videos) // most)):
        segments = 0

        def choose(count):
            nonlocal segments
            segments = len(np.unique(sampler.indices(count), axis=0))
            return np.zeros(1, np.int64)

        try:
            clip = videos.read_clip(index, choose, channels=sampler.channels)
        except UnreadableVideo:
            continue  # evaluation lists it
        size = dict(target_width=sampler.width, target_height=sampler.height, crops=sampler.crops)
        boxes = sampling.view_boxes(clip.shape[2], clip.shape[1], **size)
        found.append((segments, len(set(boxes))))
    return tuple(map(max, zip(*found, strict=True)))


def _shape_box(
    sampler: DenseSampler | SparseSampler, width: int, height: int, rng: np.random.Generator
) -> Box:
    """The largest box of a sampler's shape: in training at a random place, else centred."""
    x, y, wide, high = sampling.center_crop_box(
        width, height, target_width=sampler.width, target_height=sampler.height
    )
    if sampler.train:
        x, y = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return x, y, wide, high


def resize_crop(clip: np.ndarray, *, box: Box, width: int, height: int) -> np.ndarray:
    """Cut one box (x, y, width, height) out of all frames and resize it: uint8 [F, H, W, C].

    Pillow's bilinear filter, which averages where it shrinks, as in the reference. A box of that
    size already is a view.
    """
    x, y, wide, high = box
    cut = clip[:, y : y + high, x : x + wide]
    if (wide, high) == (width, height):
        return cut
    out = np.empty((len(clip), height, width, clip.shape[3]), np.uint8)
    grey = clip.shape[3] == 1
    for index, picture in enumerate(cut):
        image = Image.fromarray(picture[..., 0] if grey else picture)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        out[index] = resized[..., None] if grey else resized
    return out
