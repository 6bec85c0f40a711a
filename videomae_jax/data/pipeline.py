"""Videos -> batches of clips, as a pure function of the seed and the step.

The clip at global position p = step * batch_size + row is drawn from (seed, p)
alone. So any number of processes together, and any start, give the same batches,
and there is no state of the data to save. The only module that knows TensorFlow.
"""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

# Its start-up messages are about devices that it is not to use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

from videomae_jax.data.bad import BadVideos  # noqa: E402
from videomae_jax.data.decode import UnreadableVideo  # noqa: E402
from videomae_jax.data.sources import Videos  # noqa: E402
from videomae_jax.errors import UserError  # noqa: E402

# TensorFlow reads files here; it must not take the memory of JAX's devices.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

# How often an input-output error is tried again, and after how many seconds.
RETRIES, PAUSE = 2, 0.2
# How many other videos are tried in the place of an unreadable one.
SUBSTITUTES = 16

Batch = dict[str, np.ndarray]


def clip_batches(
    videos: Videos,
    *,
    sample: Callable,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    bad: BadVideos,
    repeats: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The training batches of steps start_step to start_step + num_steps - 1.

    Each epoch is a permutation of the videos; a batch may span two. `sample(videos,
    index, rng)` makes a clip of `sample.shape` = (F, H, W, C). `batch_size` counts the
    clips of all processes; this one gets its b = batch_size / process_count rows:
    video uint8 [b, F, H, W, C], id int32 [b], row int32 [b], the place in the batch of
    all processes, and label int32 [b] where there are labels. `repeats` clips of
    each video, one after the other, are drawn each for itself.
    An unreadable video is recorded in `bad`, and another one, drawn from (seed, p),
    takes its place; id and label are those of the video that was read.
    Raises UserError for a batch that cannot be divided, and while iterating where
    there are too many bad videos. What else `sample` raises comes through.
    """
    rows = _rows(batch_size, process_count)
    if seed < 0:
        raise UserError(f"seed {seed} is negative: use {-seed}")
    count = len(videos)

    def locate(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position = number // rows * batch_size + process_index * rows + number % rows
        turn = position // repeats
        place = tf.random.experimental.index_shuffle(
            turn % count, seed=tf.stack([seed, turn // count]), max_index=count - 1
        )
        return position, place

    def load(position: int, place: int) -> tuple[np.ndarray, int]:
        for attempt in range(1 + SUBSTITUTES):
            rng = np.random.default_rng([seed, position, attempt])
            index = int(rng.integers(count)) if attempt else place
            clip = _read(sample, videos, index, rng, bad)
            if clip is not None:
                return clip, index
            bad.check()
        raise UserError(f"{SUBSTITUTES} substitutes for {videos.paths[place]} failed too: {bad}")

    def finish() -> Iterator[Batch]:
        for video, index, _ in batches:
            ids = index.astype(np.int32)
            yield {"video": video, "id": ids, "row": places, **_labels(videos, index)}

    places = np.arange(process_index * rows, (process_index + 1) * rows, dtype=np.int32)
    numbers = tf.data.Dataset.range(start_step * rows, (start_step + num_steps) * rows)
    batches = _load(numbers.map(locate), load, shape=sample.shape, rows=rows, threads=threads)
    return finish()


def eval_batches(
    videos: Videos,
    *,
    sample: Callable,
    batch_size: int,
    seed: int,
    bad: BadVideos,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Every video exactly once, in order, in batches of one shape.

    The keys of `clip_batches` and valid, bool [b]. An unreadable video is never
    replaced: its clip is zeros, valid is False, and `bad` counts it; there is no
    share of them that raises. The rows that fill up the last batch are zeros with
    id -1, label -1 and valid False. All processes get the same number of batches;
    those before `start_step` are left out.
    """
    rows = _rows(batch_size, process_count)
    count = len(videos)
    steps = -(-count // batch_size)

    def locate(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position = number // rows * batch_size + process_index * rows + number % rows
        return position, tf.where(position < count, position, -1)

    def load(position: int, place: int) -> tuple[np.ndarray | None, int]:
        if place < 0:
            return None, place
        rng = np.random.default_rng([seed, position])
        return _read(sample, videos, place, rng, bad), place

    def finish() -> Iterator[Batch]:
        for video, index, read in batches:
            yield {
                "video": video,
                "id": index.astype(np.int32),
                **_labels(videos, index),
                "valid": read,
            }

    numbers = tf.data.Dataset.range(start_step * rows, steps * rows).map(locate)
    batches = _load(numbers, load, shape=sample.shape, rows=rows, threads=threads)
    return finish()


def _rows(batch_size: int, process_count: int) -> int:
    """The rows of a batch that one process reads."""
    if batch_size % process_count or batch_size < 1:
        below = batch_size // process_count * process_count
        near = f"{below} or {below + process_count}" if below else f"{process_count}"
        raise UserError(
            f"batch {batch_size} is not divisible by {process_count} processes: use {near}"
        )
    return batch_size // process_count


def _labels(videos: Videos, index: np.ndarray) -> Batch:
    """The labels of some videos, -1 for index -1, under the key they have in a batch."""
    if videos.labels is None:
        return {}
    return {"label": np.where(index < 0, -1, videos.labels[index]).astype(np.int32)}


def _read(
    sample: Callable, videos: Videos, index: int, rng: np.random.Generator, bad: BadVideos
) -> np.ndarray | None:
    """A clip; or None, recorded, where the video is unreadable."""
    for attempt in range(1 + RETRIES):
        try:
            return sample(videos, index, rng)
        except UnreadableVideo as error:
            reason = str(error)
            if not error.transient:
                break
        if attempt < RETRIES:
            time.sleep(PAUSE)
    bad.add(videos.paths[index], reason)
    return None


def _load(
    places: tf.data.Dataset,
    load: Callable[[int, int], tuple[np.ndarray | None, int]],
    *,
    shape: tuple[int, ...],
    rows: int,
    threads: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of `load(position, place)` in order: (video, index, whether it was read)."""
    # One a core: more only pass the interpreter's lock around (2 cores, 112x112 clips:
    # 190 clips/s with 2 threads, 150 with 4). Slow disks may want more.
    threads = threads or len(os.sched_getaffinity(0))
    failures: list[Exception] = []

    def guarded(position: np.ndarray, place: np.ndarray) -> tuple:
        # An exception would come out of TensorFlow as a text among C++ frames, so it
        # is carried around it.
        try:
            clip, index = load(int(position), int(place))
            if clip is not None:
                return clip, np.int64(index), np.True_
        except Exception as error:
            failures.append(error)
            index = -1
        return np.zeros(shape, np.uint8), np.int64(index), np.False_

    def read(position: tf.Tensor, place: tf.Tensor) -> tuple:
        # Not stateful, else TensorFlow would run one call at a time.
        video, index, good = tf.numpy_function(
            guarded, [position, place], [tf.uint8, tf.int64, tf.bool], stateful=False
        )
        video.set_shape(shape)
        index.set_shape(())
        good.set_shape(())
        return video, index, good

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # A pool of its own, so that nothing else of TensorFlow waits behind the decoders.
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    dataset = places.map(read, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(rows, drop_remainder=True).prefetch(2).with_options(options)
    for batch in dataset.as_numpy_iterator():
        if failures:
            raise failures[0]
        yield batch
