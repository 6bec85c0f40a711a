"""Videos -> training batches of clips, as a pure function of the seed and the step.

The clip at global position p = step * batch_size + row is drawn from (seed, p) alone. So the
batches do not depend on the number of processes or on the first step, and there is no iterator
state to save. The only module that uses tf.data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from videomae_jax.data.host_tensorflow import tf
from videomae_jax.data.records import Records
from videomae_jax.data.regions import decode_regions, jpeg_reader, read_jpegs
from videomae_jax.data.retry import read_with_retries
from videomae_jax.data.samplers import Clips, ClipSampler, Rngs
from videomae_jax.data.storage import readers
from videomae_jax.data.turns import Turns
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError, divide_batch
from videomae_jax.host import count_cores

# How many other videos are tried instead of an unreadable one.
SUBSTITUTES = 16

Batch = dict[str, np.ndarray]
# Reads the clips of one video, without or with decoding: (index, rngs) -> arrays.
Fetch = Callable[[int, Rngs], tuple]
# Fetches the clips of one position in the data, or of a video that replaces an unreadable one:
# (fetch, position, index) -> the result of `fetch` and the index of its video.
Load = Callable[[Fetch, int, int], tuple[tuple, int]]


def clip_batches(
    videos: Videos,
    *,
    sampler: ClipSampler,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    bad: BadVideos,
    repeats: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yield the training batches of steps start_step to start_step + num_steps - 1.

    Each epoch is a permutation of the videos; a batch may span two epochs. `batch_size` counts
    the clips of all processes; this one gets its b = batch_size / process_count rows: the arrays
    of `sampler.spec`, id int32 [b], row int32 [b], the row in the batch of all processes, and
    label int32 [b] or bool [b, classes] if there are labels, see `Videos`. `repeats` clips of each
    video follow each other: they share one decode, but each is drawn independently.
    An unreadable video is recorded in `bad` and replaced by another one, drawn from (seed, p)
    where p is the position of the first of its clips; id and label are those of the video read.
    `threads` read clips in parallel, None means one per core; of videos in a bucket, READERS more
    wait for data. `prefetch` batches are kept ready.
    Raises UserError for a batch that cannot be divided and, while iterating, for too many bad
    videos. Other exceptions of `sampler` are not caught.
    """
    rows = divide_batch(batch_size, process_count, by=f"{process_count} processes")
    if seed < 0:
        raise UserError(f"seed {seed} is negative: use {-seed}")
    if prefetch < 1:
        raise UserError(f"data.ahead {prefetch}: use 1 or more")
    count = len(videos)
    # How many clips of a video this process decodes at once. Clips do not depend on it, so the
    # number of processes may change.
    group = math.gcd(rows, repeats)

    def locate(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = number * group
        position = row // rows * batch_size + process_index * rows + row % rows
        turn = position // repeats
        index = tf.random.experimental.index_shuffle(
            turn % count, seed=tf.stack([seed, turn // count]), max_index=count - 1
        )
        return position, index

    def load(fetch: Fetch, position: int, index: int) -> tuple[tuple, int]:
        path = videos.paths[index]
        for attempt in range(1 + SUBSTITUTES):
            if attempt:
                first = position - position % repeats
                index = int(np.random.default_rng([seed, first, attempt, 1]).integers(count))
            seeds = [[seed, position + row, attempt] for row in range(group)]
            found = _read(fetch, videos, index, seeds, bad)
            if found is not None:
                return found, index
            bad.check()
        raise UserError(f"{SUBSTITUTES} substitutes for {path} failed too: {bad}")

    row = np.arange(process_index * rows, (process_index + 1) * rows, dtype=np.int32)
    groups = rows // group
    numbers = tf.data.Dataset.range(start_step * groups, (start_step + num_steps) * groups)
    loader = _Loader(load, videos=videos, sampler=sampler, group=group)
    batches = _load(numbers.map(locate), loader, rows=rows, threads=threads, prefetch=prefetch)
    return (batch | {"row": row} for batch in batches)


def _read(
    fetch: Fetch, videos: Videos, index: int, seeds: Sequence[list[int]], bad: BadVideos
) -> tuple | None:
    """Return `fetch(index, rngs)`; None, recorded in `bad`, if the video is unreadable."""

    def attempt() -> tuple:
        return fetch(index, [np.random.default_rng(seed) for seed in seeds])

    return read_with_retries(attempt, videos.paths[index], bad)


@dataclass(kw_only=True)
class _Loader:
    """Loads the clips of one video in a tf.data graph.

    group: how many clips of a video. failures: exceptions of the Python code. They are raised
    outside of TensorFlow, which would report them as a text among C++ frames. turns: how many
    threads run that code at once.
    """

    load: Load = field(kw_only=False)
    videos: Videos
    sampler: ClipSampler
    group: int
    failures: list[Exception] = field(default_factory=list)
    turns: Turns = field(init=False)

    def __call__(self, position: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return the arrays of `spec` and the index of the video, [group, ...]."""
        reader = jpeg_reader(self.videos)
        if reader is None:
            *clips, index = self._load_clips(position, index)
        else:
            *clips, index = self._load_regions(position, index, reader)
        for leaf, (shape, _) in zip(clips, self.sampler.spec.values(), strict=True):
            leaf.set_shape((self.group, *shape))
        index.set_shape(())
        return *clips, tf.repeat(index, self.group)

    def batch(self, *leaves: Any) -> Batch:
        """Return the batch of arrays [b, ...]."""
        *clips, index = leaves
        batch = dict(zip(self.sampler.spec, clips, strict=True)) | {"id": index.astype(np.int32)}
        if self.videos.labels is not None:
            batch["label"] = self.videos.labels_at(index)
        return batch

    def _load_clips(self, position: tf.Tensor, index: tf.Tensor) -> list[tf.Tensor]:
        def fetch(index: int, rngs: Rngs) -> tuple:
            return self._in_order(self.sampler.sample_many(self.videos, index, rngs))

        return self._fetch(fetch, position, index, empty=self._no_clips())

    def _load_regions(
        self, position: tf.Tensor, index: tf.Tensor, reader: Records
    ) -> list[tf.Tensor]:
        """Decode with TensorFlow, between two calls of Python."""
        empty = np.array([], object), np.zeros(4, np.int32), np.zeros((self.group, 1, 4), np.int32)

        def fetch(index: int, rngs: Rngs) -> tuple:
            jpegs, region, boxes = read_jpegs(
                self.videos, index, reader=reader, sampler=self.sampler, rngs=rngs
            )
            return np.array(jpegs, object), region, boxes

        def crop(frames: np.ndarray, boxes: np.ndarray) -> tuple:
            if not len(frames):  # after an exception
                return self._no_clips()
            return self._in_order(self.sampler.crop(frames, boxes))

        jpegs, region, boxes, index = self._fetch(fetch, position, index, empty=empty)
        jpegs.set_shape([None])
        region.set_shape([4])
        frames = decode_regions(jpegs, region, channels=self.sampler.channels)
        clips = self._call_python(crop, [frames, boxes], default=self._no_clips())
        return [*clips, index]

    def _fetch(
        self, fetch: Fetch, position: tf.Tensor, index: tf.Tensor, *, empty: tuple
    ) -> list[tf.Tensor]:
        """Return what `load` fetches and the index; after an exception `empty` and -1."""

        def load(position: np.ndarray, index: np.ndarray) -> tuple:
            found, read = self.load(fetch, int(position), int(index))
            return *found, np.int64(read)

        return self._call_python(load, [position, index], default=(*empty, np.int64(-1)))

    def _call_python(
        self, function: Callable[..., tuple], inputs: list[tf.Tensor], *, default: tuple
    ) -> list[tf.Tensor]:
        """Call a function of arrays; for an exception return `default`, which gives the types."""

        def guarded(*arrays: np.ndarray) -> tuple:
            try:
                with self.turns():
                    return function(*arrays)
            except Exception as error:
                self.failures.append(error)
                return default

        types = [tf.as_dtype(value.dtype) for value in default]
        # Not stateful, else TensorFlow would run one call at a time.
        return tf.numpy_function(guarded, inputs, types, stateful=False)

    def _in_order(self, clips: Clips) -> tuple[np.ndarray, ...]:
        return tuple(clips[name] for name in self.sampler.spec)

    def _no_clips(self) -> tuple[np.ndarray, ...]:
        spec = self.sampler.spec.values()
        return tuple(np.zeros((self.group, *shape), dtype) for shape, dtype in spec)


def _load(
    positions: tf.data.Dataset, loader: _Loader, *, rows: int, threads: int | None, prefetch: int
) -> Iterator[Batch]:
    """Yield batches of `rows` clips, in the order of the (position, index) pairs."""
    # One per core: more only compete for the lock of the interpreter (2 cores, 112x112 clips:
    # 190 clips/s with 2 threads, 150 with 4). Slow disks may want more.
    threads = threads or count_cores()
    loader.turns = Turns(threads)
    threads += readers(loader.videos.files)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # A pool of its own, so that nothing else of TensorFlow waits behind the decoders.
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    dataset = positions.map(loader, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(rows // loader.group, drop_remainder=True).prefetch(prefetch)
    for leaves in dataset.with_options(options).as_numpy_iterator():
        if loader.failures:
            raise loader.failures[0]
        yield loader.batch(*(leaf.reshape(rows, *leaf.shape[2:]) for leaf in leaves))
