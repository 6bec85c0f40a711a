"""Read a video again after an input-output error."""

import time
from collections.abc import Callable
from typing import TypeVar

from videomae_jax.data.decode import UnreadableVideo
from videomae_jax.data.unreadable import BadVideos

# How often an input-output error is tried again, and after how many seconds.
RETRIES, PAUSE = 2, 0.2

Result = TypeVar("Result")


def read_with_retries(read: Callable[[], Result], path: str, bad: BadVideos) -> Result | None:
    """Return what `read()` returns; None, recorded in `bad`, where the video is unreadable."""
    for attempt in range(1 + RETRIES):
        try:
            return read()
        except UnreadableVideo as error:
            if attempt == RETRIES or not error.transient:
                bad.add(path, str(error))
                return None
        time.sleep(PAUSE)
    raise AssertionError("the last attempt returns")
