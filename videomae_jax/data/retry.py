"""Read a video again after an input-output error."""

import time
from collections.abc import Callable
from typing import TypeVar

from videomae_jax.data.storage import UnreadableVideo
from videomae_jax.data.unreadable import BadVideos

# How often an input-output error is tried again, and after how many seconds.
RETRIES, PAUSE = 2, 0.2

Result = TypeVar("Result")


def retry(read: Callable[[], Result]) -> Result:
    """Return `read()`. Raises UnreadableVideo, of an input-output error after RETRIES more."""
    for _ in range(RETRIES):
        try:
            return read()
        except UnreadableVideo as error:
            if not error.transient:
                raise
        time.sleep(PAUSE)
    return read()


def read_with_retries(read: Callable[[], Result], path: str, bad: BadVideos) -> Result | None:
    """Return `read()`; None, recorded in `bad`, if the video is unreadable."""
    try:
        return retry(read)
    except UnreadableVideo as error:
        bad.add(path, str(error))
        return None
