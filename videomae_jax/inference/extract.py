"""Write features of videos, window by window."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax import paths
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.host import count_cores
from videomae_jax.inference import tables
from videomae_jax.inference.engine import (
    NumberedWindow,
    check_batch,
    data_mesh,
    predict_windows,
)
from videomae_jax.inference.network import Network, merging_facts
from videomae_jax.inference.resumable import Parts, fingerprint
from videomae_jax.inference.windows import WindowSampler, read_windows
from videomae_jax.models.tokens import patch_grid
from videomae_jax.progress import Progress
from videomae_jax.tasks.task import Params

POOLS = {"clip": "features", "time": "steps", "tokens": "tokens"}
COLUMNS = ("video", "start", "end", "first_frame", "last_frame", "features")
WINDOWS = 8  # in a batch, on each device


class Extraction(NamedTuple):
    """The result of `extract`.

    path: the file. windows: the number of its rows. videos: the number of videos with rows.
    span: frames from the first to the last frame of a window. short: the number of videos that
    are shorter; their last frame is repeated. unreadable: the videos without rows.
    """

    path: str
    windows: int
    videos: int
    span: int
    short: int
    unreadable: BadVideos


def check_output(
    out: str,
    videos: Videos,
    *,
    pool: str = "clip",
    index: int = 0,
    count: int = 1,
    batch_size: int | None = None,
) -> None:
    """Raise UserError if `extract` would refuse these settings, without loading a model."""
    tables.check_ending(out)
    file = shard_name(out, index, count)
    if paths.exists(file):
        raise UserError(f"{file} exists: give a new name, or remove it")
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is unknown: use one of {', '.join(POOLS)}")
    if tables.ending_of(out) == tables.FOLDER:
        _check_folder(out, videos, pool)
    mesh = data_mesh(jax.local_devices())
    check_batch(WINDOWS * mesh.size if batch_size is None else batch_size, mesh)
    if count > len(videos):
        raise UserError(
            f"{count} processes share {len(videos)} videos: use at most {len(videos)} processes"
        )
    if videos.reader:
        raise UserError(
            f"{videos.name} holds records, which have no time stamps: give the list or the folder "
            "they were packed from"
        )


def check_pool(pool: str, network: Network) -> None:
    """Raise UserError if a network merges the tokens that a pool returns."""
    if network.merge_tokens and pool != "clip":
        raise UserError(f"--pool {pool} has every token: use --pool clip with token merging")


def _check_folder(out: str, videos: Videos, pool: str) -> None:
    """Raise UserError unless every row is a vector, and the names of the videos differ."""
    if pool != "clip":
        raise UserError(f"{out} holds one vector a window: use --pool clip, or an .npz for {pool}")
    seen: dict[str, str] = {}
    for path in videos.paths:
        other = seen.setdefault(tables.video_name(path), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would both be {tables.video_name(path)}.npy: rename one, or "
                "write an .npz"
            )


def extract(
    network: Network,
    params: Params,
    config: ConfigDict,
    videos: Videos,
    *,
    out: str,
    pool: str = "clip",
    window: int | None = None,
    stride: int | None = None,
    hop: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    index: int = 0,
    count: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Extraction | None:
    """Write one row of features for every window of every video; see `tables.write_table`.

    out: a new .npz or .parquet file, or a new folder, ending in "/". pool: "clip", the mean of all
    tokens [D]; "time", the mean of each time step [T, D]; "tokens", all tokens [N, D]. window,
    stride: frames of a window and the distance between them, None: as in training. hop: frames
    between the starts of two windows, None: windows do not overlap. batch_size: windows on all
    devices of this process, None for 8 on each. threads: decoders, None for one per core. index,
    count: the number of this process and of all; each takes every count-th video and writes a file
    of its own. stopped: called after every batch; when it returns true, the rows are saved in
    OUT.parts, from which the same call resumes, and the result is None.
    Raises UserError for impossible settings, and if OUT.parts has rows of other settings.
    """
    check_output(out, videos, pool=pool, index=index, count=count, batch_size=batch_size)
    check_pool(pool, network)
    clip = config.clip
    frames = clip.frames if window is None else window
    stride = clip.stride if stride is None else stride
    hop = frames * stride if hop is None else hop
    patch_grid((frames, clip.height, clip.width), network.patch)
    size = dict(height=clip.height, width=clip.width)
    sampler = WindowSampler(
        frames=frames,
        stride=stride,
        hop=hop,
        channels=len(network.mean),
        even=tables.ending_of(out) == tables.FOLDER,
        **size,
    )
    facts: dict[str, str | int | float] = {
        "model": fingerprint([params, config.model.to_json()]),
        **merging_facts(network),
        "dtype": network.run.dtype.name,
        "videos": fingerprint(list(videos.paths)),
        "pool": pool,
        "window": frames,
        "stride": stride,
        "hop": hop,
        **size,
        "processes": f"{index} of {count}",
    }
    file = shard_name(out, index, count)
    parts = Parts(parts_name(out, index, count), facts)
    bad = _list_unreadable(file, videos, begun=bool(parts.position))
    ids = list(range(index, len(videos), count))
    position, first = parts.position or (0, 0)
    windows = read_windows(
        videos,
        ids[position:],
        sampler=sampler,
        first=first,
        bad=bad,
        threads=threads or count_cores(),
    )
    mesh = data_mesh(jax.local_devices())
    batches = predict_windows(
        network,
        params,
        windows,
        name=POOLS[pool],
        batch_size=WINDOWS * mesh.size if batch_size is None else batch_size,
        mesh=mesh,
    )
    with closing(batches):
        _save(batches, parts, ids, begun=position, stopped=stopped)
    if stopped():
        return None

    # A video may prove unreadable after some of its windows were computed.
    left_out = {number for number in ids if videos.paths[number] in bad.reasons}
    span = (frames - 1) * stride + 1
    total, short = _join(file, parts, videos, left_out=left_out, facts=facts, span=span, bad=bad)
    parts.remove()
    return Extraction(file, total, len(ids) - len(left_out), span, short, bad)


def _list_unreadable(file: str, videos: Videos, *, begun: bool) -> BadVideos:
    """Return the unreadable videos, with their list; begun: keep a list that is there."""
    listing = f"{file.removesuffix(tables.FOLDER)}.unreadable.csv"
    if not begun:
        paths.remove(listing)
    return BadVideos(videos, max_share=1.0, file=listing)


def shard_name(out: str, index: int, count: int) -> str:
    """Return the file that a process writes: FILE.npz, or FILE-00000-of-00004.npz."""
    if count == 1:
        return out
    ending = tables.ending_of(out)
    return f"{out.removesuffix(ending)}-{index:05}-of-{count:05}{ending}"


def parts_name(out: str, index: int, count: int) -> str:
    """Return the folder of the rows that a process has computed so far."""
    return f"{shard_name(out, index, count).removesuffix(tables.FOLDER)}.parts"


def _save(
    batches: Iterator[tuple[list[NumberedWindow], np.ndarray]],
    parts: Parts,
    ids: list[int],
    *,
    begun: int,
    stopped: Callable[[], bool],
) -> None:
    """Add the rows of all batches to the parts, with the (video, window) to resume from."""
    positions = {number: position for position, number in enumerate(ids)}
    progress = Progress(len(ids), begun=begun)
    done = 0
    for rows, features in batches:
        number, last = rows[-1]
        position = positions[number]
        following = last.number + 1
        finished = following == last.total
        parts.add(
            _columns(rows, features),
            position=(position + 1, 0) if finished else (position, following),
        )
        done += len(rows)
        progress.show(
            position + following / last.total,
            count=done,
            unit="windows",
            of=f"video {position + 1:,} of {len(ids):,}",
        )
        if stopped():
            break
    progress.close()
    parts.flush()


def _columns(rows: list[NumberedWindow], features: np.ndarray) -> dict[str, np.ndarray]:
    windows = [window for _, window in rows]
    return {
        "video": np.array([number for number, _ in rows], np.int64),
        "start": np.array([window.seconds[0] for window in windows]),
        "end": np.array([window.seconds[1] for window in windows]),
        "first_frame": np.array([window.frames[0] for window in windows], np.int64),
        "last_frame": np.array([window.frames[-1] for window in windows], np.int64),
        "features": features,
    }


def _join(
    out: str,
    parts: Parts,
    videos: Videos,
    *,
    left_out: set[int],
    facts: dict,
    span: int,
    bad: BadVideos,
) -> tuple[int, int]:
    """Write the table; return the number of windows, and of videos shorter than a window."""

    def read(*names: str) -> Iterator[dict[str, np.ndarray]]:
        for rows in parts.read(*{"video", *names}):
            kept = ~np.isin(rows["video"], list(left_out))
            yield {name: rows[name][kept] for name in names}

    total = 0
    short: set[int] = set()
    for rows in read("video", "first_frame", "last_frame"):
        total += len(rows["video"])
        shorter = rows["last_frame"] - rows["first_frame"] < span - 1
        short |= set(rows["video"][shorter].tolist())
    if not total:
        raise UserError(f"nothing to write: {bad}")
    tables.write_table(out, read, COLUMNS, paths=videos.paths, facts=facts)
    return total, len(short)
