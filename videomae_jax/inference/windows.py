"""Read whole videos as windows: clips at regular distances, which may overlap."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from videomae_jax.data import sampling
from videomae_jax.data.decode import open_frames
from videomae_jax.data.resize import resize_crop
from videomae_jax.data.retry import read_with_retries
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

# Windows that each reading thread prefetches: eight of 16 x 224 x 224 pixels are 19 MB.
READY = 8
# How often a waiting thread checks whether it should stop, in seconds.
POLL = 0.1


class Window(NamedTuple):
    """One clip of a video.

    clip: uint8 [F, H, W, C]. frames: int64 [F], the frame numbers. seconds: the start of the
    first frame and the end of the last one, from the first frame of the video. number: of this
    window, 0 to total - 1. total: the number of windows of the video.
    """

    clip: np.ndarray
    frames: np.ndarray
    seconds: tuple[float, float]
    number: int
    total: int


# (path, first) -> the windows of a video from `first` on.
Sampler = Callable[[str, int], Iterator[Window]]


@dataclass(frozen=True)
class WindowSampler:
    """Yields all windows of a video, in order: `sampler(path, first) -> Iterator[Window]`.

    Frames are cropped to the largest centred box and resized, as in evaluation. Windows start
    `hop` frames apart. With a `stride` of None, sampling is sparse: two clips that span the
    whole video, as in evaluation. Windows before `first` are not decoded. even: leave out the
    last window, which ends at the last frame, if it starts less than `hop` after the one before
    it, for files without times: window i then starts at frame i * hop. Raises UserError for
    lengths below 1, and UnreadableVideo while iterating.
    """

    frames: int
    stride: int | None
    hop: int
    height: int
    width: int
    channels: int
    even: bool = False

    def __post_init__(self):
        for name in ("frames", "stride", "hop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"windows of {name} {value}: use 1 or more")

    def __call__(self, path: str | bytes, first: int = 0) -> Iterator[Window]:
        with open_frames(path, channels=self.channels) as (seconds, read):
            indices = self.indices(len(seconds) - 1)
            yield from cut_windows(indices, seconds, read, self._resize, first=first)

    def indices(self, count: int) -> np.ndarray:
        """Return the frames of each window of a video of `count`: int64 [n, F], increasing."""
        if self.stride is None:
            return sampling.sparse_views(count, frames=self.frames)
        found = sampling.window_indices(count, frames=self.frames, stride=self.stride, hop=self.hop)
        return found[found[:, 0] % self.hop == 0] if self.even else found

    def _resize(self, image: np.ndarray) -> np.ndarray:
        size = dict(width=self.width, height=self.height)
        box = sampling.center_crop_box(
            image.shape[1],
            image.shape[0],
            target_width=self.width,
            target_height=self.height,
        )
        return resize_crop(image[None], box=box, **size)[0]


def cut_windows(
    indices: np.ndarray,
    seconds: np.ndarray,
    read: Callable[[list[int]], Iterator[np.ndarray]],
    resize: Callable[[np.ndarray], np.ndarray],
    *,
    first: int = 0,
) -> Iterator[Window]:
    """Yield the windows of a video from `first` on, from one pass over it.

    indices: int64 [n, F], the frames of each window; they increase in a window and from window to
    window. seconds, read: see `decode.open_frames`. resize: uint8 [h, w, C] -> [H, W, C].
    """
    wanted = np.unique(indices[first:]).tolist()
    images = zip(wanted, read(wanted), strict=True)
    kept: dict[int, np.ndarray] = {}
    for number, frames in enumerate(indices[first:], start=first):
        # Each frame is decoded and resized once, however many windows contain it.
        kept = {index: image for index, image in kept.items() if index >= frames[0]}
        while frames[-1] not in kept:
            index, image = next(images)
            kept[index] = resize(image)
        yield Window(
            clip=np.stack([kept[index] for index in frames.tolist()]),
            frames=frames,
            seconds=(float(seconds[frames[0]]), float(seconds[frames[-1] + 1])),
            number=number,
            total=len(indices),
        )


def read_windows(
    videos: Videos,
    ids: list[int],
    *,
    sampler: Sampler,
    first: int,
    bad: BadVideos,
    threads: int,
) -> Generator[tuple[int, Window], None, None]:
    """Yield (id, window) of the videos `ids`, one video after the other, in this order.

    first: the first window to read of the first video. threads: the number of videos to read at
    once, one thread for each. bad: records unreadable videos; windows that were read before the
    error are yielded. Close the generator if you leave it before its end.
    """
    unwanted = threading.Event()
    rest = deque(enumerate(ids))
    waiting: deque[tuple[int, queue.Queue, threading.Thread]] = deque()
    try:
        while rest or waiting:
            while rest and len(waiting) < threads:
                position, number = rest.popleft()
                ready: queue.Queue = queue.Queue(maxsize=READY)
                begin = 0 if position else first
                thread = threading.Thread(
                    target=_read_video,
                    args=(videos.paths[number], sampler, begin, bad, ready, unwanted),
                    name=f"video {number}",
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


def _read_video(
    path: str,
    sampler: Sampler,
    first: int,
    bad: BadVideos,
    ready: queue.Queue,
    unwanted: threading.Event,
) -> None:
    """Put the windows of a video and, last, None or the exception, until `unwanted` is set."""

    def put(item: Window | Exception | None) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(item, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        nonlocal first
        for window in sampler(path, first):
            if not put(window):
                return
            first = window.number + 1

    try:
        read_with_retries(read, path, bad)
        put(None)
    except Exception as error:
        put(error)
