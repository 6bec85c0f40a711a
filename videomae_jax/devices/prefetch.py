"""Move batches from the host to the devices, some steps ahead."""

import queue
import threading
import time
import weakref
from collections.abc import Iterator

import jax
import numpy as np

# Interval at which a waiting thread checks whether it should stop, in seconds.
POLL = 0.1


class DevicePrefetcher:
    """Iterate over batches of global arrays, and keep `prefetch` of them on the devices.

    batches: yields dicts of host arrays, the rows of this process. sharding: of the batch axis,
    for every array. A thread reads and transfers; `next` raises its exceptions. `waited` is the
    time that `next` has waited so far, in seconds. Close it, or use it in a `with`, when leaving
    before the end; a program that does not still exits.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        *,
        sharding: jax.sharding.NamedSharding,
        prefetch: int = 2,
    ):
        self.waited = 0.0
        self._ready: queue.Queue = queue.Queue(maxsize=prefetch)
        self._unwanted = threading.Event()
        # The thread must not reference the DevicePrefetcher, or one that is not closed would stay.
        weakref.finalize(self, self._unwanted.set)
        self._thread = threading.Thread(
            target=_fill, args=(batches, sharding, self._ready, self._unwanted), name="feed"
        )
        self._thread.start()

    def __iter__(self) -> "DevicePrefetcher":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._unwanted.is_set():
            raise StopIteration
        began = time.perf_counter()
        batch, error = self._ready.get()
        self.waited += time.perf_counter() - began
        if batch is None:
            self.close()
            raise error or StopIteration
        return batch

    def close(self) -> None:
        """Stop reading, and wait for the thread, at most the time of one batch."""
        self._unwanted.set()
        self._thread.join()

    def __enter__(self) -> "DevicePrefetcher":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _fill(batches, sharding, ready: queue.Queue, unwanted: threading.Event) -> None:
    """Put batches into `ready`, and last (None, exception or None), until `unwanted` is set."""

    def put(item) -> bool:
        # At exit the interpreter joins this thread before it deletes the DevicePrefetcher.
        while not unwanted.is_set() and threading.main_thread().is_alive():
            try:
                ready.put(item, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    batches = iter(batches)
    try:
        for batch in batches:
            if not put((jax.tree.map(lambda leaf: _put(leaf, sharding), batch), None)):
                break
        else:
            put((None, None))
    except Exception as error:
        put((None, error))
    finally:
        # Ends the threads of the pipeline while the interpreter still runs.
        if hasattr(batches, "close"):
            batches.close()


def _put(leaf: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, leaf)
