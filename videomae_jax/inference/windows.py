"""A whole video as clips, window after window, of which only one is held at a time."""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from videomae_jax.data import sampling
from videomae_jax.data.decode import UnreadableVideo, open_frames
from videomae_jax.data.samplers import resize_crop
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

# Windows that each reading thread keeps ready: eight of 16 x 224 x 224 pixels are 19 MB.
READY = 8
# How often an input-output error is tried again, and after how many seconds.
RETRIES, PAUSE = 2, 0.2
# How often a waiting reader looks whether it is still wanted, in seconds.
POLL = 0.1


class Window(NamedTuple):
    """One clip of a video.

    clip: uint8 [F, H, W, C]. frames: int64 [F]. seconds: when its first frame appears and its
    last one ends, from the first frame of the video. number: 0 to count - 1, of the video's.
    """

    clip: np.ndarray
    frames: np.ndarray
    seconds: tuple[float, float]
    number: int
    count: int


@dataclass(frozen=True)
class WindowSampler:
    """All windows of a video, in order: `sampler(path, first) -> Iterator[Window]`.

    The largest centred crop, resized, as in evaluation. Windows are `hop` frames apart; a
    `stride` of None is sparse sampling: two clips of all parts of the video, as its test
    views. Windows before `first` are not decoded. Raises UserError for lengths below 1,
    UnreadableVideo while iterating.
    """

    frames: int
    stride: int | None
    hop: int | None
    height: int
    width: int
    channels: int

    def __post_init__(self):
        for name in ("frames", "stride", "hop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"windows of {name} {value}: use 1 or more")

    def __call__(self, path: str | bytes, first: int = 0) -> Iterator[Window]:
        with open_frames(path, channels=self.channels) as (seconds, read):
            indices = self.indices(len(seconds) - 1)[first:]
            wanted = np.unique(indices).tolist()
            pictures, kept = zip(wanted, read(wanted), strict=True), {}
            for number, frames in enumerate(indices, start=first):
                # Each frame is decoded and resized once, however many windows have it.
                kept = {index: picture for index, picture in kept.items() if index >= frames[0]}
                while frames[-1] not in kept:
                    index, picture = next(pictures)
                    kept[index] = self._resize(picture)
                yield Window(
                    clip=np.stack([kept[index] for index in frames.tolist()]),
                    frames=frames,
                    seconds=(float(seconds[frames[0]]), float(seconds[frames[-1] + 1])),
                    number=number,
                    count=first + len(indices),
                )

    def indices(self, count: int) -> np.ndarray:
        """Which frames of `count`: int64 [n, F]; both axes increase."""
        if self.stride is None:
            return sampling.sparse_views(count, frames=self.frames)
        return sampling.window_indices(count, frames=self.frames, stride=self.stride, hop=self.hop)

    def _resize(self, picture: np.ndarray) -> np.ndarray:
        size = dict(width=self.width, height=self.height)
        box = sampling.center_crop_box(
            picture.shape[1],
            picture.shape[0],
            target_width=self.width,
            target_height=self.height,
        )
        return resize_crop(picture[None], box=box, **size)[0]


def read_windows(
    videos: Videos,
    ids: list[int],
    *,
    sampler: WindowSampler,
    first: int,
    bad: BadVideos,
    threads: int,
) -> Iterator[tuple[int, Window]]:
    """Yield (id, window) of some videos, one video after the other, in the order of `ids`.

    first: the window of the first video to begin with. Each thread reads one of the next
    videos ahead. An unreadable video goes to `bad`; windows of it that were read come before
    that. Close the iterator when leaving before its end.
    """
    unwanted, waiting, rest = threading.Event(), deque(), deque(enumerate(ids))
    try:
        while rest or waiting:
            while rest and len(waiting) < threads:
                place, number = rest.popleft()
                ready = queue.Queue(maxsize=READY)
                arguments = (videos.paths[number], sampler, 0 if place else first, bad)
                thread = threading.Thread(
                    target=_read_video, args=(*arguments, ready, unwanted), name=f"video {number}"
                )
                thread.start()
                waiting.append((number, ready, thread))
            number, ready, _ = waiting[0]
            while isinstance(window := ready.get(), Window):
                yield number, window
            waiting.popleft()[2].join()
            if window is not None:
                raise window
    finally:
        unwanted.set()
        for _, _, thread in waiting:
            thread.join()


def _read_video(path: str, sampler, first: int, bad: BadVideos, ready, unwanted) -> None:
    """Put the windows of a video and, last, None or the exception, until nobody wants them."""

    def put(item) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(item, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    try:
        for attempt in range(1 + RETRIES):
            try:
                for window in sampler(path, first):
                    if not put(window):
                        return
                    first = window.number + 1
                break
            except UnreadableVideo as error:
                if attempt == RETRIES or not error.transient:
                    bad.add(path, str(error))
                    break
            time.sleep(PAUSE)
        put(None)
    except Exception as error:
        put(error)
