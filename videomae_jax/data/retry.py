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
    """Return `read()`; None, recorded in `bad`, if the video is unreadable."""
    retries = RETRIES
    while True:
        try:
            return read()
        except UnreadableVideo as error:
            if not error.transient or not retries:
                bad.add(path, str(error))
                return None
        retries -= 1
        time.sleep(PAUSE)
