"""Inspect every video of a list once: its facts, whether it decodes, and thumbnails."""

import hashlib
import io
import itertools
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from videomae_jax.data.decode import VideoFacts, read_clip, read_facts
from videomae_jax.data.storage import UnreadableVideo, fetch_video
from videomae_jax.host import count_cores
from videomae_jax.paths import open_binary

# Frames decoded of each video, evenly spaced from the first to the last.
FRAMES = 5
# The side of a thumbnail in pixels, and the largest difference between thumbnails of one frame in
# different encodings: `tests/data/test_survey.py` shows what these tell apart.
SIDE, TOLERANCE = 16, 20
# A larger bucket of candidates is ignored: it contains unrelated videos.
CROWD = 64
# The long side of the images of the report, in pixels.
PICTURE = 192


@dataclass(frozen=True)
class Survey:
    """Facts about one video. If it cannot be read, `reason` is not "" and the rest is unknown.

    digest: of the bytes, "" if there is no file. size: in bytes. width, height: of the upright
    frames. thumbnails: grey uint8 [FRAMES, SIDE, SIDE]. picture: a JPEG file of the middle frame,
    b"" if it was not requested.
    """

    path: str
    reason: str = ""
    digest: str = ""
    size: int = 0
    facts: VideoFacts | None = None
    width: int = 0
    height: int = 0
    thumbnails: np.ndarray | None = None
    picture: bytes = b""


def survey_video(path: str, picture: bool = False) -> Survey:
    """Survey one video. Faults of the file are not raised, but stored in `reason`."""
    digest, size = "", 0
    try:
        source = fetch_video(path)
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else open_binary(source)
        with file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
            size = file.tell()
        facts = read_facts(source)
        clip = read_clip(source, _spread)
    except UnreadableVideo as error:
        return Survey(path, reason=str(error), digest=digest, size=size)
    except OSError as error:
        return Survey(path, reason=(error.strerror or str(error)).lower())
    images = [Image.fromarray(frame) for frame in clip]
    small = [image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    return Survey(
        path,
        digest=digest,
        size=size,
        facts=facts,
        width=clip.shape[2],
        height=clip.shape[1],
        thumbnails=np.stack([np.asarray(image) for image in small]),
        picture=_jpeg(images[FRAMES // 2]) if picture else b"",
    )


def _spread(count: int) -> np.ndarray:
    """Choose FRAMES frames, evenly spaced from the first to the last."""
    return np.linspace(0, count - 1, FRAMES).round().astype(int)


def survey_videos(paths: Sequence[str], *, pictures: Sequence[bool]) -> Iterator[Survey]:
    """Yield the surveys of videos in order, from one process per core."""
    workers = min(count_cores(), len(paths))
    # Not forked: the caller may have threads, whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process; the parent stops the others.
    ignore = signal.SIGINT, signal.SIG_IGN
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=signal.signal, initargs=ignore
    ) as pool:
        yield from pool.map(survey_video, paths, pictures, chunksize=4)


def find_copies(surveys: Sequence[Survey]) -> dict[int, int]:
    """Return {index: first index} of videos with the same bytes as an earlier one."""
    first: dict[str, int] = {}
    copies = {}
    for index, survey in enumerate(surveys):
        if survey.size:
            known = first.setdefault(survey.digest, index)
            if known != index:
                copies[index] = known
    return copies


def find_look_alikes(surveys: Sequence[Survey]) -> list[tuple[int, int]]:
    """Return pairs of indices of videos that show the same in another encoding or size.

    No pixel of their thumbnails differs by more than TOLERANCE. To avoid comparing all pairs,
    candidates must share 14 consecutive bits of the comparisons between neighbouring cells of
    the thumbnails. Videos without contrast match nothing; copies of the same bytes are left out.
    """
    indices, thumbnails = [], []
    for index, survey in enumerate(surveys):
        if survey.thumbnails is not None and survey.thumbnails.std() > TOLERANCE / 2:
            indices.append(index)
            thumbnails.append(survey.thumbnails.astype(np.int16))
    if not indices:
        return []
    cells = np.stack(thumbnails).reshape(len(indices), FRAMES, SIDE // 2, 2, SIDE // 2, 2)
    coarse = cells.mean(axis=(3, 5))
    brighter = coarse[..., 1:] > coarse[..., :-1]
    runs = np.packbits(brighter.reshape(len(indices), -1, 14), axis=-1)
    pairs: set[tuple[int, int]] = set()
    for run in range(runs.shape[1]):
        buckets = defaultdict(list)
        for row, key in enumerate(runs[:, run]):
            buckets[key.tobytes()].append(row)
        for rows in buckets.values():
            if 1 < len(rows) <= CROWD:
                pairs |= set(itertools.combinations(rows, 2))
    return sorted(
        (indices[a], indices[b])
        for a, b in pairs
        if surveys[indices[a]].digest != surveys[indices[b]].digest
        and np.abs(thumbnails[a] - thumbnails[b]).max() <= TOLERANCE
    )


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((PICTURE, PICTURE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
