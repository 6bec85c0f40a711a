"""Clips without files: moving patterns, for benchmarks and tests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

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
    """Batches with the keys and the shapes of `clip_batches`: video, id, row and label.

    `shape` is (F, H, W, C); `batch_size` counts the clips of all processes. The
    label, 0 to 3, is the direction of the movement. A pure function of the seed
    and the step.
    """
    rows = batch_size // process_count
    for step in range(start_step, start_step + num_steps):
        first = step * batch_size + process_index * rows
        ids = np.arange(first, first + rows)
        yield {
            "video": np.stack([moving_pattern(shape, seed=seed, index=index) for index in ids]),
            "id": ids.astype(np.int32),
            "row": (ids - step * batch_size).astype(np.int32),
            "label": (ids % 4).astype(np.int32),
        }


def moving_pattern(shape: tuple[int, int, int, int], *, seed: int, index: int) -> np.ndarray:
    """Random waves that move right, down, left or up by index % 4: uint8 [F, H, W, C]."""
    frames, height, width, channels = shape
    rng = np.random.default_rng([seed, index])
    periods = rng.uniform(4, 16, (2, 1, 1, 1))
    phases = rng.uniform(0, 2 * np.pi, (2, 1, 1, channels))
    across = np.sin(2 * np.pi * np.arange(2 * width)[:, None] / periods[0, 0] + phases[0, 0])
    down = np.sin(2 * np.pi * np.arange(2 * height)[:, None] / periods[1, 0] + phases[1, 0])
    speed = int(rng.integers(1, 4))
    step_x, step_y = [(-1, 0), (0, -1), (1, 0), (0, 1)][index % 4]
    moved_x = (np.arange(frames)[:, None] * speed * step_x + np.arange(width)) % (2 * width)
    moved_y = (np.arange(frames)[:, None] * speed * step_y + np.arange(height)) % (2 * height)
    waves = across[moved_x][:, None, :, :] + down[moved_y][:, :, None, :]
    return (127.5 + 63.5 * waves).astype(np.uint8)


@dataclass(frozen=True)
class SyntheticSampler:
    """The clip of a synthetic video, for where a `ClipSampler` would read a file."""

    shape: tuple[int, int, int, int]
    sized: bool

    def __call__(self, videos: Videos, index: int, rng: np.random.Generator) -> np.ndarray:
        return moving_pattern(self.shape, seed=0, index=int(videos.paths[index].rpartition("/")[2]))

    def sample_many(
        self, videos: Videos, index: int, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same clip for each rng, see `ClipSampler`."""
        clip = self(videos, index, rngs[0])
        sizes = np.array([self.shape[1:3]] * len(rngs), np.int32)
        return np.stack([clip] * len(rngs)), sizes


def synthetic_videos(count: int = 10_000) -> Videos:
    """Videos that are not there, in four classes; `SyntheticSampler` knows what they show."""
    return Videos(
        paths=tuple(f"synthetic/{index}" for index in range(count)),
        labels=np.arange(count, dtype=np.int32) % 4,
        class_names=("right", "down", "left", "up"),
        name="synthetic",
    )
