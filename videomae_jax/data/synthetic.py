"""Clips without files: moving patterns, for benchmarks and tests."""

from collections.abc import Iterator, Sequence

import numpy as np

from videomae_jax.data.samplers import BaseSampler, Box, Clips, Rngs, Spec
from videomae_jax.data.sampling import Choose
from videomae_jax.data.videos import Videos


def synthetic_batches(
    *,
    shape: tuple[int, int, int, int],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches with the keys and the shapes of `clip_batches`: video, id, row and label.

    `shape` is (F, H, W, C); `batch_size` counts the clips of all processes. The label, 0 to 3,
    is the direction of the movement. A batch is a pure function of the seed and the step.
    """
    rows = batch_size // process_count
    for step in range(start_step, start_step + num_steps):
        first = step * batch_size + process_index * rows
        ids = np.arange(first, first + rows)
        yield {
            "video": np.stack([moving_pattern(shape, seed=seed, index=int(i)) for i in ids]),
            "id": ids.astype(np.int32),
            "row": (ids - step * batch_size).astype(np.int32),
            "label": (ids % 4).astype(np.int32),
        }


def moving_pattern(shape: tuple[int, ...], *, seed: int, index: int) -> np.ndarray:
    """Return random waves that move right, down, left or up by index % 4: uint8 [F, H, W, C]."""
    frames, height, width, channels = shape
    rng = np.random.default_rng([seed, index])
    periods = rng.uniform(4, 16, (2, 1, 1, 1))
    phases = rng.uniform(0, 2 * np.pi, (2, 1, 1, channels))
    horizontal = np.sin(2 * np.pi * np.arange(2 * width)[:, None] / periods[0, 0] + phases[0, 0])
    vertical = np.sin(2 * np.pi * np.arange(2 * height)[:, None] / periods[1, 0] + phases[1, 0])
    speed = int(rng.integers(1, 4))
    step_x, step_y = [(-1, 0), (0, -1), (1, 0), (0, 1)][index % 4]
    moved_x = (np.arange(frames)[:, None] * speed * step_x + np.arange(width)) % (2 * width)
    moved_y = (np.arange(frames)[:, None] * speed * step_y + np.arange(height)) % (2 * height)
    waves = horizontal[moved_x][:, None, :, :] + vertical[moved_y][:, :, None, :]
    return (127.5 + 63.5 * waves).astype(np.uint8)


class SyntheticSampler(BaseSampler):
    """A `ClipSampler` of `synthetic_videos`, whose frames are computed, not decoded.

    spec: of the sampler that it replaces. Sizes are those of the whole clip; of the boxes only
    the first is present, the whole image, and its action is the label.
    """

    def __init__(self, spec: Spec):
        self._spec = spec
        self.channels = spec["video"][0][-1]

    @property
    def spec(self) -> Spec:
        """That of the sampler that it replaces."""
        return self._spec

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, H, W, C)."""
        return self._spec["video"][0]

    def sample_many(self, videos: Videos, index: int, rngs: Rngs) -> Clips:
        """Make the clip of a video, and its box, if the spec has boxes, for each generator."""
        clips = super().sample_many(videos, index, rngs)
        if "boxes" in self._spec:
            _, height, width, _ = self.shape
            persons: Clips = {
                name: np.zeros((len(rngs), *shape), dtype)
                for name, (shape, dtype) in self._spec.items()
            }
            persons["boxes"][:] = [0, 0, width, height]
            persons["present"][:, 0] = True
            persons["target"][:, 0, index % persons["target"].shape[-1]] = True
            clips = persons | clips
        return clips

    def decode(self, videos: Videos, index: int, rngs: Rngs) -> tuple[np.ndarray, np.ndarray]:
        """Compute the pattern of a video, the same for each generator."""
        number = int(videos.paths[index].rpartition("/")[2])
        clip = moving_pattern(self.shape, seed=0, index=number)
        _, height, width, _ = self.shape
        return np.concatenate([clip] * len(rngs)), self.crop_boxes(width, height, rngs)

    def choose(self, videos: Videos, index: int, rngs: Rngs) -> Choose:
        """Return a function that chooses all frames."""
        return np.arange

    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """Return the whole image."""
        return [(0, 0, width, height)]

    def cut(self, frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Return the frames."""
        return frames


def synthetic_videos(count: int = 10_000, *, labelled: bool = True) -> Videos:
    """Return the names of synthetic videos, in four classes or not: see `SyntheticSampler`."""
    return Videos(
        paths=tuple(f"synthetic/{index}" for index in range(count)),
        labels=np.arange(count, dtype=np.int32) % 4 if labelled else None,
        class_names=("right", "down", "left", "up") if labelled else None,
        name="synthetic",
    )
