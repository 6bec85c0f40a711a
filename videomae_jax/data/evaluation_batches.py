"""Videos -> batches for evaluation: every video once, in order. Needs no TensorFlow."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice

import numpy as np

from videomae_jax.data.retry import read_with_retries
from videomae_jax.data.samplers import Clips, ClipSampler
from videomae_jax.data.storage import readers
from videomae_jax.data.turns import Turns
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import divide_batch
from videomae_jax.host import count_cores

# How many batches are kept ready.
AHEAD = 2


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
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield every video exactly once, in order, in batches of one shape.

    The keys are those of `pipeline.clip_batches` without row, and valid, bool [b]. The clip of
    video i is drawn from (seed, i). An unreadable video is not replaced: its clip is zeros, valid
    is False, and it is recorded in `bad`; any number of them is accepted. The rows that fill up
    the last batch are zeros with id -1, label -1 (or no labels) and valid False. All processes get
    the same number of batches; those before `start_step` are left out.
    `threads` read clips in parallel, None means one per core; of videos in a bucket, READERS more
    wait for data. Close the generator if you leave it before its end.
    Raises UserError for a batch that cannot be divided. Other exceptions of `sampler` than
    UnreadableVideo are raised while iterating.
    """
    rows = divide_batch(batch_size, process_count, by=f"{process_count} processes")
    steps = range(start_step, -(-len(videos) // batch_size))
    threads = threads or count_cores()
    turns = Turns(threads)
    threads += readers(videos.files)

    def read(index: int) -> Clips | None:
        def attempt() -> Clips:
            return sampler.sample_many(videos, index, [np.random.default_rng([seed, index])])

        with turns():
            return read_with_retries(attempt, videos.paths[index], bad)

    def batches() -> Generator[dict[str, np.ndarray], None, None]:
        firsts = [step * batch_size + process_index * rows for step in steps]
        parts = [range(first, min(first + rows, len(videos))) for first in firsts]
        ahead = AHEAD * rows + threads
        with closing(_map(read, chain(*parts), threads=threads, ahead=ahead)) as clips:
            for part in parts:
                batch: dict[str, np.ndarray] = {
                    name: np.zeros((rows, *shape), dtype)
                    for name, (shape, dtype) in sampler.spec.items()
                }
                index, valid = np.full(rows, -1, np.int32), np.zeros(rows, bool)
                index[: len(part)] = part
                for row, found in enumerate(islice(clips, len(part))):
                    if found is not None:
                        valid[row] = True
                        for name, leaf in batch.items():
                            (leaf[row],) = found[name]
                batch |= {"id": index, "valid": valid}
                if videos.labels is not None:
                    batch["label"] = videos.labels_at(index)
                yield batch

    return batches()


def _map(
    read: Callable[[int], Clips | None], indices: Iterable[int], *, threads: int, ahead: int
) -> Generator[Clips | None, None, None]:
    """Yield `read(index)` of each, in order; threads compute up to `ahead` of them in advance."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    waiting: deque[Future[Clips | None]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
