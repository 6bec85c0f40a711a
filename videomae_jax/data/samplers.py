"""Samplers: which frames, which crop and which size make a clip of a video.

PyAV is imported when it is used: tasks import this module, and benchmarks of them run without.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from videomae_jax.data import sampling
from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.probing import read_sizes
from videomae_jax.data.resize import Box, resize_crop, resize_part
from videomae_jax.data.sampling import ByTime, Choose
from videomae_jax.data.storage import UnreadableVideo
from videomae_jax.data.videos import Videos, group_by_path
from videomae_jax.errors import UserError

# Boxes of persons in an evaluation clip, at most: all are computed.
MOST_PERSONS = 128

Rngs = Sequence[np.random.Generator]
Clips = dict[str, np.ndarray]  # R clips and what belongs to them: arrays [R, ...] by name
# Returns whole numbers that each process has read for itself, the same on all processes.
Agree = Callable[[list[int]], list[int]]
Spec = dict[str, tuple[tuple[int, ...], type]]  # shape and dtype of each, of one clip


class ClipSampler(Protocol):
    """Makes clips of videos, all of one shape.

    `sample_many` does all the work. The other methods are its steps, for callers that decode
    by themselves: `choose`, then `crop_boxes`, which draws from the same generators, then
    `crop`. R is the number of clips, one for each generator.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, H, W, C), or (V, F, H, W, C) for all views of a video."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""

    @property
    def spec(self) -> Spec:
        """What `sample_many` returns, without R.

        Always "video" uint8 [*shape]; "size" int32 [2], the height and the width that a clip
        fills, if it may fill only the top left part of `shape`.
        """

    def groups(self, videos: Videos, agree: Agree = list) -> list[tuple[list[int], "ClipSampler"]]:
        """Return the parts of a list whose clips have one shape: their indices, their sampler.

        agree: needed where several processes share the batches of a part.
        """

    def __call__(self, videos: Videos, index: int, rng: np.random.Generator) -> np.ndarray:
        """Make one clip of video `index`: uint8 [*shape]. Raises UnreadableVideo."""

    def sample_many(self, videos: Videos, index: int, rngs: Rngs) -> Clips:
        """Make R clips from one decode, see `spec`. Raises UnreadableVideo."""

    def decode(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        """Return the arguments of `crop`: decoded frames and boxes. Raises UnreadableVideo."""

    def choose(self, videos: Videos, index: int, rngs: Rngs) -> Choose:
        """Return a function that draws frames of video `index`: int64 [R * F], clip after clip."""

    def crop_boxes(self, width: int, height: int, rngs: Rngs) -> np.ndarray:
        """Draw boxes in images of this size: int32 [R, boxes, 4], each x, y, width, height."""

    def crop(self, frames: np.ndarray, boxes: np.ndarray) -> Clips:
        """Cut clips out of frames uint8 [R * F, H, W, C]; returns "video" and "size"."""


class BaseSampler(ABC):
    """A `ClipSampler` made of functions of a single clip: `boxes`, `cut` and `size`."""

    channels: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of a clip."""

    @abstractmethod
    def choose(self, videos: Videos, index: int, rngs: Rngs) -> Choose:
        """Return a function that draws frames of video `index`."""

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
    def spec(self) -> Spec:
        return {"video": (self.shape, np.uint8)}

    def groups(self, videos: Videos, agree: Agree = list) -> list[tuple[list[int], ClipSampler]]:
        return [(list(range(len(videos))), self)]

    def __call__(self, videos: Videos, index: int, rng: np.random.Generator) -> np.ndarray:
        return self.sample_many(videos, index, [rng])["video"][0]

    def sample_many(self, videos: Videos, index: int, rngs: Rngs) -> Clips:
        return self.crop(*self.decode(videos, index, rngs))

    def decode(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        choose = self.choose(videos, index, rngs)
        frames = videos.read_clip(index, choose, channels=self.channels)
        return frames, self.crop_boxes(frames.shape[2], frames.shape[1], rngs)

    def crop_boxes(self, width: int, height: int, rngs: Rngs) -> np.ndarray:
        return np.array([self.boxes(width, height, rng) for rng in rngs], np.int32)

    def crop(self, frames: np.ndarray, boxes: np.ndarray) -> Clips:
        parts = np.split(frames, len(boxes))
        cuts = [self.cut(part, box) for part, box in zip(parts, boxes.tolist(), strict=True)]
        # A single clip is not copied.
        stacked = np.stack(cuts) if len(cuts) > 1 else np.ascontiguousarray(cuts[0])[None]
        clips = {"video": stacked}
        if "size" in self.spec:
            clips["size"] = np.array([self.size(box) for box in boxes.tolist()], np.int32)
        return clips


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
    def spec(self) -> Spec:
        """A clip on a canvas has a size."""
        return super().spec | ({"size": ((2,), np.int32)} if self.canvas else {})

    @abstractmethod
    def indices(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of a clip of a video with `count`: int64 [F]."""

    def choose(self, videos: Videos, index: int, rngs: Rngs) -> Choose:
        """Return a function that draws the frames of each clip."""
        return lambda count: np.concatenate([self.indices(count, rng) for rng in rngs])

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

    def choose(self, videos: Videos, index: int, rngs: Rngs) -> Choose:
        """Return a function that chooses the frames of all clips; it stores `count` in `counts`."""

        def choose(count: int) -> np.ndarray:
            self.counts[index] = count
            return np.concatenate([self.indices(count).ravel()] * len(rngs))

        return choose

    def indices(self, count: int) -> np.ndarray:
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


@dataclass(frozen=True, kw_only=True)
class KeyFrameSampler(BaseSampler):
    """The clip around a key frame, with the boxes and the actions of its persons.

    Frames are those nearest to the seconds of `sampling.key_frame_offsets` at `rate` frames per
    second, whatever the rate of the video. The short side of the images is resized to
    `short_side`, or more where they would be smaller than the clip. In training the clip is a
    random height x width crop of them. Otherwise it is the whole image, in the top left corner of
    height x width pixels: `groups` returns the samplers with the size and the M of a list.

    "boxes" float32 [M, 4]: x1, y1, x2, y2 in pixels of the clip, moved like the pixels and clamped
    to them; a person outside has an empty box on the border. Absent ones are the whole clip.
    "present" bool [M]. "target" bool [M, K]: the actions. M is `persons`, of more in training as
    many at random; K is `classes`.
    """

    frames: int
    stride: int
    rate: float
    short_side: int
    height: int
    width: int
    channels: int
    persons: int
    classes: int
    train: bool
    patch: tuple[int, int] = (16, 16)  # height and width of evaluation clips are multiples of it

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C)."""
        return self.frames, self.height, self.width, self.channels

    @property
    def spec(self) -> Spec:
        """Evaluation clips have a size."""
        spec = super().spec | {
            "boxes": ((self.persons, 4), np.float32),
            "present": ((self.persons,), np.bool_),
            "target": ((self.persons, self.classes), np.bool_),
        }
        return spec if self.train else spec | {"size": ((2,), np.int32)}

    def groups(self, videos: Videos, agree: Agree = list) -> list[tuple[list[int], ClipSampler]]:
        """Return a part for each size of the clips, with the largest number of boxes of the list.

        Unreadable videos are in the first part. Raises UserError for too many boxes.
        """
        assert videos.key_frames is not None
        persons = max(8, -(-videos.key_frames.most // 8) * 8)
        if persons > MOST_PERSONS:
            raise UserError(
                f"{videos.name} has {videos.key_frames.most} boxes in one key frame, more than "
                f"{MOST_PERSONS}: leave out those of low score with --min-score"
            )
        parts: dict[tuple[int, int], list[int]] = {}
        unread: list[int] = []
        films = group_by_path(videos.paths)
        sizes = read_sizes(films, videos.reader)
        # Another process may have been unable to read one of the videos.
        sides = agree([side for path in films for side in sizes.get(path, (0, 0))])
        for indices, height, width in zip(films.values(), sides[::2], sides[1::2], strict=True):
            if not height:
                unread += indices  # evaluation lists it
                continue
            scaled_width, scaled_height = self.scaled(width, height)
            size = (
                -(-scaled_height // self.patch[0]) * self.patch[0],
                -(-scaled_width // self.patch[1]) * self.patch[1],
            )
            parts.setdefault(size, []).extend(indices)
        height, width = next(iter(parts), (self.height, self.width))
        parts.setdefault((height, width), []).extend(unread)
        return [
            (sorted(part), replace(self, height=height, width=width, persons=persons))
            for (height, width), part in parts.items()
        ]

    def sample_many(self, videos: Videos, index: int, rngs: Rngs) -> Clips:
        """Make R clips from one decode, and find the persons in each."""
        assert videos.key_frames is not None
        frames, boxes = self.decode(videos, index, rngs)
        clips = self.crop(frames, boxes)
        size = self.scaled(frames.shape[2], frames.shape[1])
        found = [
            self.find_persons(videos.key_frames, index, size, box, rng)
            for (box,), rng in zip(boxes.tolist(), rngs, strict=True)
        ]
        return clips | {name: np.stack([one[name] for one in found]) for name in found[0]}

    def choose(self, videos: Videos, index: int, rngs: Rngs) -> Choose:
        """Return a function that chooses the frames around the key frame, the same for each.

        Raises UserError for packed records that do not have all of them.
        """
        assert videos.key_frames is not None
        away = sampling.key_frame_offsets(frames=self.frames, stride=self.stride) / self.rate
        if abs(away).max() > videos.key_frames.around:
            raise UserError(
                f"{videos.name} has {videos.key_frames.around:g} s around each key frame, clips "
                f"need {abs(away).max():.2f}: pack with --around {abs(away).max():.2f} or more"
            )
        times = videos.key_frames.seconds[index] + away
        return ByTime(
            lambda seconds: np.concatenate([sampling.nearest_frames(seconds, times)] * len(rngs))
        )

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return the size (width, height) to which images of a video are resized."""
        width, height = sampling.scale_to_short_side(width, height, short_side=self.short_side)
        if not self.train:
            return width, height
        scale = max(1.0, self.width / width, self.height / height)
        return max(self.width, round(width * scale)), max(self.height, round(height * scale))

    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """Draw the box of the clip, in pixels of the resized images."""
        width, height = self.scaled(width, height)
        if not self.train:
            return [(0, 0, width, height)]
        x = int(rng.integers(width - self.width + 1))
        y = int(rng.integers(height - self.height + 1))
        return [(x, y, self.width, self.height)]

    def size(self, boxes: Sequence[Box]) -> tuple[int, int]:
        """Return the height and the width that a clip fills."""
        _, _, width, height = boxes[0]
        return height, width

    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Resize the frames and cut the box out of them; evaluation clips are padded with zeros.

        Raises UnreadableVideo for a box larger than the clip.
        """
        x, y, width, height = boxes[0]
        scaled_width, scaled_height = self.scaled(frames.shape[2], frames.shape[1])
        across, down = frames.shape[2] / scaled_width, frames.shape[1] / scaled_height
        source = x * across, y * down, (x + width) * across, (y + height) * down
        if height > self.height or width > self.width:
            # Of a video that `groups` could not read for its size.
            raise UnreadableVideo(
                f"{width} x {height} pixels, clips have {self.width} x {self.height}"
            )
        part = resize_part(frames, width=width, height=height, source=source)
        if self.train:
            return part
        clip = np.zeros(self.shape, np.uint8)
        clip[:, :height, :width] = part
        return clip

    def find_persons(
        self,
        key_frames: KeyFrames,
        index: int,
        size: tuple[int, int],
        box: Box,
        rng: np.random.Generator,
    ) -> Clips:
        """Return "boxes", "present" and "target" of one clip.

        size: width and height of the resized images. box: of the clip in them.
        """
        x, y, width, height = box
        rows = np.arange(*key_frames.offsets[[index, index + 1]])
        if self.train and len(rows) > self.persons:
            rows = np.sort(rng.choice(rows, self.persons, replace=False))
        boxes = np.tile(np.array([0, 0, width, height], np.float32), (self.persons, 1))
        moved = key_frames.boxes[rows] * np.array(2 * size) - [x, y, x, y]
        boxes[: len(rows)] = np.clip(moved, 0, [width, height, width, height])
        target = np.zeros((self.persons, self.classes), np.bool_)
        target[: len(rows)] = key_frames.targets[rows]
        present = np.arange(self.persons) < len(rows)
        return {"boxes": boxes, "present": present, "target": target}


def distinct_views(sampler: ViewSampler, videos: Videos, *, most: int = 16) -> tuple[int, int]:
    """Return how many different (segments, crops) the videos allow, at most the sampler's.

    The maximum over `most` evenly spaced videos; (0, 0) if none of them can be read.
    """
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
