"""Look into every video of a list once: what it is, whether it decodes, what it looks like."""

import hashlib
import io
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from videomae_jax.data.decode import UnreadableVideo, VideoFacts, read_clip, read_facts

# Frames decoded of each video, evenly from the first to the last.
FRAMES = 5
# The side of a thumbnail, and how far two of one picture lie apart in other encodings: see
# `tests/test_survey.py` for what that tells apart.
SIDE, TOLERANCE = 16, 20
# A bucket of more look-alike candidates says nothing about them.
CROWD = 64
# The long side of a picture for people, in pixels.
PICTURE = 192


@dataclass(frozen=True)
class Survey:
    """One video: `reason` says why it cannot be read, else it is "" and the rest is known.

    `digest` is that of its bytes, "" where there is no file. `width` and `height` are those of
    the upright picture. `thumbnails` are grey uint8 [FRAMES, SIDE, SIDE], `picture` a JPEG of
    the middle frame, b"" where none was asked for.
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
    """Survey one video; never raises for what is wrong with the file."""
    digest, size = "", 0
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
            size = file.tell()
        facts = read_facts(path)
        clip = read_clip(path, lambda count: np.linspace(0, count - 1, FRAMES).round().astype(int))
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


def survey_videos(
    paths: Sequence[str], *, pictures: Sequence[bool], workers: int = 0
) -> Iterator[Survey]:
    """Survey videos in order, on all cores: `workers` processes, 0 for one per core."""
    workers = min(workers or os.cpu_count() or 1, len(paths))
    # Not forked: the caller may have threads, which a fork would cut off in the middle.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process; the one that asked for this ends the others.
    ignore = dict(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    with ProcessPoolExecutor(workers, mp_context=context, **ignore) as pool:
        yield from pool.map(survey_video, paths, pictures, chunksize=4)


def find_copies(surveys: Sequence[Survey]) -> dict[int, int]:
    """The place of each video whose bytes stand earlier in the list -> the first such place."""
    first: dict[str, int] = {}
    copies = {}
    for place, survey in enumerate(surveys):
        if survey.size:
            known = first.setdefault(survey.digest, place)
            if known != place:
                copies[place] = known
    return copies


def find_look_alikes(surveys: Sequence[Survey]) -> list[tuple[int, int]]:
    """Pairs of places of videos that show the same, in other encodings or sizes.

    No cell of their thumbnails differs by more than TOLERANCE. Candidates share a run of
    14 bits of which neighbour is brighter, so that not all pairs are compared. Videos without
    contrast match nothing; copies of the same bytes are left out.
    """
    places = [
        place
        for place, survey in enumerate(surveys)
        if survey.thumbnails is not None and survey.thumbnails.std() > TOLERANCE / 2
    ]
    if not places:
        return []
    thumbnails = np.stack([surveys[place].thumbnails for place in places]).astype(np.int16)
    coarse = thumbnails.reshape(len(places), FRAMES, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(3, 5))
    brighter = coarse[..., 1:] > coarse[..., :-1]
    runs = np.packbits(brighter.reshape(len(places), -1, 14), axis=-1)
    pairs = set()
    for run in range(runs.shape[1]):
        buckets = defaultdict(list)
        for row, key in enumerate(runs[:, run]):
            buckets[key.tobytes()].append(row)
        for rows in buckets.values():
            if 1 < len(rows) <= CROWD:
                pairs |= {(a, b) for index, b in enumerate(rows) for a in rows[:index]}
    return sorted(
        (places[a], places[b])
        for a, b in pairs
        if surveys[places[a]].digest != surveys[places[b]].digest
        and np.abs(thumbnails[a] - thumbnails[b]).max() <= TOLERANCE
    )


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((PICTURE, PICTURE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
