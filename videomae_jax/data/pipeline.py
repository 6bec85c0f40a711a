"""Videos -> batches of clips, as a pure function of the seed and the step.

The clip at global position p = step * batch_size + row is drawn from (seed, p)
alone. So any number of processes together, and any start, give the same batches,
and there is no state of the data to save. The only module that knows tf.data.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Its start-up messages are about devices that it is not to use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

from videomae_jax.data.records import Records, decode_regions  # noqa: E402
from videomae_jax.data.retry import read_with_retries  # noqa: E402
from videomae_jax.data.samplers import ClipSampler  # noqa: E402
from videomae_jax.data.unreadable import BadVideos  # noqa: E402
from videomae_jax.data.videos import Videos  # noqa: E402
from videomae_jax.errors import UserError, nearest_multiples  # noqa: E402
from videomae_jax.host import count_cores  # noqa: E402

# TensorFlow reads files here; it must not take the memory of JAX's devices.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

# How many other videos are tried in the place of an unreadable one.
SUBSTITUTES = 16
# Batches kept ready, where nobody says how many.
AHEAD = 2

Batch = dict[str, np.ndarray]


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
    prefetch: int = AHEAD,
) -> Iterator[Batch]:
    """The training batches of steps start_step to start_step + num_steps - 1.

    Each epoch is a permutation of the videos; a batch may span two. `sampler` makes a clip of
    `sampler.shape` = (F, H, W, C) of a video. `batch_size` counts the clips of all processes;
    this one gets its b = batch_size / process_count rows: video uint8 [b, F, H, W, C], id
    int32 [b], row int32 [b], the place in the batch of all processes, label int32 [b] where
    there are labels, and size int32 [b, 2] where the sampler is `sized`. `repeats` clips of each
    video, one after the other, are drawn each for itself, from one decode.
    An unreadable video is recorded in `bad`, and another one, drawn from (seed, p) where p is
    the first of its clips, takes its place; id and label are those of the video that was read.
    `threads` read clips at once, one a core where None, and `prefetch` batches are kept ready.
    Raises UserError for a batch that cannot be divided, and while iterating where
    there are too many bad videos. What else `sampler` raises comes through.
    """
    rows = _rows(batch_size, process_count)
    if seed < 0:
        raise UserError(f"seed {seed} is negative: use {-seed}")
    if prefetch < 1:
        raise UserError(f"data.ahead {prefetch}: use 1 or more")
    count = len(videos)
    # The clips of a video that this process decodes at once; what is in them does not depend
    # on it, so the number of processes may change.
    group = math.gcd(rows, repeats)

    def locate(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = number * group
        position = row // rows * batch_size + process_index * rows + row % rows
        turn = position // repeats
        place = tf.random.experimental.index_shuffle(
            turn % count, seed=tf.stack([seed, turn // count]), max_index=count - 1
        )
        return position, place

    def load(read: Callable, position: int, place: int) -> tuple[tuple, int]:
        index = place
        for attempt in range(1 + SUBSTITUTES):
            if attempt:
                first = position - position % repeats
                index = int(np.random.default_rng([seed, first, attempt, 1]).integers(count))
            seeds = [[seed, position + row, attempt] for row in range(group)]
            found = _read(read, videos, index, seeds, bad)
            if found is not None:
                return found, index
            bad.check()
        raise UserError(f"{SUBSTITUTES} substitutes for {videos.paths[place]} failed too: {bad}")

    def finish() -> Iterator[Batch]:
        for video, size, index, _ in batches:
            ids = index.astype(np.int32)
            sizes = {"size": size} if sampler.sized else {}
            yield {"video": video, "id": ids, "row": places, **_labels(videos, index), **sizes}

    places = np.arange(process_index * rows, (process_index + 1) * rows, dtype=np.int32)
    units = rows // group
    numbers = tf.data.Dataset.range(start_step * units, (start_step + num_steps) * units)
    batches = _load(
        numbers.map(locate),
        load,
        videos=videos,
        sampler=sampler,
        group=group,
        rows=rows,
        threads=threads,
        prefetch=prefetch,
    )
    return finish()


def eval_batches(
    videos: Videos,
    *,
    sampler: ClipSampler,
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

    def load(read: Callable, position: int, place: int) -> tuple[tuple | None, int]:
        if place < 0:
            return None, place
        return _read(read, videos, place, [[seed, position]], bad), place

    def finish() -> Iterator[Batch]:
        for video, size, index, read in batches:
            yield {
                "video": video,
                "id": index.astype(np.int32),
                **_labels(videos, index),
                **({"size": size} if sampler.sized else {}),
                "valid": read,
            }

    numbers = tf.data.Dataset.range(start_step * rows, steps * rows).map(locate)
    batches = _load(
        numbers, load, videos=videos, sampler=sampler, group=1, rows=rows, threads=threads
    )
    return finish()


def _rows(batch_size: int, process_count: int) -> int:
    """The rows of a batch that one process reads."""
    if batch_size % process_count or batch_size < 1:
        near = nearest_multiples(batch_size, process_count)
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
    read: Callable, videos: Videos, index: int, seeds: Sequence[list[int]], bad: BadVideos
) -> tuple | None:
    """What `read(index, rngs)` returns; or None, recorded, where the video is unreadable."""

    def attempt() -> tuple:
        return read(index, [np.random.default_rng(seed) for seed in seeds])

    return read_with_retries(attempt, videos.paths[index], bad)


def _load(
    places: tf.data.Dataset,
    load: Callable[[Callable, int, int], tuple[tuple | None, int]],
    *,
    videos: Videos,
    sampler: ClipSampler,
    group: int,
    rows: int,
    threads: int | None,
    prefetch: int = AHEAD,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of `load(read, position, place)` in order: (video, size, index, whether it was read).

    `load` calls `read(index, rngs)` for the clips of one video, `group` of them, and returns
    what it returns, with the index; or None.
    """
    # One a core: more only pass the interpreter's lock around (2 cores, 112x112 clips:
    # 190 clips/s with 2 threads, 150 with 4). Slow disks may want more.
    threads = threads or count_cores()
    failures: list[Exception] = []
    jpeg = _in_regions(videos)
    no_clips = np.zeros((group, *sampler.shape), np.uint8), np.zeros((group, 2), np.int32)
    no_pictures = np.array([], object), np.zeros(4, np.int32), np.zeros((group, 1, 4), np.int32)

    def fetch_clips(index: int, rngs: Sequence[np.random.Generator]) -> tuple:
        return sampler.sample_many(videos, index, rngs)

    def fetch_pictures(index: int, rngs: Sequence[np.random.Generator]) -> tuple:
        pictures, region, boxes = _fetch_pictures(videos, index, sampler, rngs)
        return np.array(pictures, object), region, boxes

    fetch, nothing = (fetch_pictures, no_pictures) if jpeg else (fetch_clips, no_clips)

    # An exception would come out of TensorFlow as a text among C++ frames, so it is carried
    # around it.
    def guarded_load(position: np.ndarray, place: np.ndarray) -> tuple:
        try:
            found, index = load(fetch, int(position), int(place))
            return *(found or nothing), np.int64(index), np.bool_(found is not None)
        except Exception as error:
            failures.append(error)
            return *nothing, np.int64(-1), np.False_

    def guarded_cut(frames: np.ndarray, boxes: np.ndarray, good: np.ndarray) -> tuple:
        try:
            return sampler.crop(frames, boxes) if good else no_clips
        except Exception as error:
            failures.append(error)
            return no_clips

    def read(position: tf.Tensor, place: tf.Tensor) -> tuple:
        # Not stateful, else TensorFlow would run one call at a time.
        leaves = [tf.string, tf.int32, tf.int32] if jpeg else [tf.uint8, tf.int32]
        *found, index, good = tf.numpy_function(
            guarded_load, [position, place], [*leaves, tf.int64, tf.bool], stateful=False
        )
        index.set_shape(())
        good.set_shape(())
        if jpeg:
            pictures, region, boxes = found
            pictures.set_shape([None])
            region.set_shape([4])
            frames = decode_regions(pictures, region, channels=sampler.channels)
            found = tf.numpy_function(
                guarded_cut, [frames, boxes, good], [tf.uint8, tf.int32], stateful=False
            )
        video, size = found
        video.set_shape((group, *sampler.shape))
        size.set_shape((group, 2))
        return video, size, tf.repeat(index, group), tf.repeat(good, group)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # A pool of its own, so that nothing else of TensorFlow waits behind the decoders.
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    dataset = places.map(read, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(rows // group, drop_remainder=True).prefetch(prefetch)
    dataset = dataset.with_options(options)
    for batch in dataset.as_numpy_iterator():
        if failures:
            raise failures[0]
        yield tuple(leaf.reshape(rows, *leaf.shape[2:]) for leaf in batch)


def decode_clips(
    videos: Videos, index: int, *, sampler: ClipSampler, rngs: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode what the clips of one video take, as for a batch: what `sampler.crop` is given.

    Raises UnreadableVideo.
    """
    if _in_regions(videos):
        pictures, region, boxes = _fetch_pictures(videos, index, sampler, rngs)
        frames = _decode_regions(tf.constant(pictures), region, channels=sampler.channels)
        return frames.numpy(), boxes
    return sampler.decode(videos, index, rngs)


_decode_regions = tf.function(decode_regions, reduce_retracing=True)


def _in_regions(videos: Videos) -> bool:
    """Whether TensorFlow decodes parts of pictures, in its own threads, without the lock."""
    return not videos.memory and isinstance(videos.reader, Records) and videos.reader.kind == "jpeg"


def _fetch_pictures(
    videos: Videos, index: int, sampler: ClipSampler, rngs: Sequence[np.random.Generator]
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The pictures of clips, the region of them to decode, and the boxes in that."""
    path = videos.paths[index]
    pictures = videos.reader.read_pictures(
        path, lambda count: sampler.frame_indices(index, count, rngs)
    )
    height, width = videos.reader.size(path)
    return pictures, *_region(sampler.crop_boxes(width, height, rngs), width)


def _region(boxes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest region around boxes int32 [..., 4] of a picture, and the boxes in it."""
    axes = tuple(range(boxes.ndim - 1))
    first = boxes[..., :2].min(axis=axes)
    last = (boxes[..., :2] + boxes[..., 2:]).max(axis=axes)
    # The colours of the outer columns are interpolated with those beyond them: with these, too,
    # all pixels are those of the whole picture, bit for bit.
    first[0], last[0] = max(first[0] - 2, 0), min(last[0] + 2, width)
    inside = boxes - np.concatenate([first, [0, 0]]).astype(np.int32)
    return np.concatenate([first, last - first]).astype(np.int32), inside
