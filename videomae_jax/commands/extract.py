"""Write features of videos, window by window, from any checkpoint.

videomae extract VIDEOS --checkpoint SRC --out FILE.npz|FILE.parquet [--pool clip|time|tokens]
videomae extract VIDEOS --checkpoint SRC --out FILE.npz --preset thumos14

A clip slides over each whole video, whose last one ends with it; frames are cropped and
normalized as the checkpoint says. One row a window: video (its number in VIDEOS), start and end
(seconds from its first frame), first_frame and last_frame, features (float32: clip [D], time
[T, D], tokens [N, D], those of the Python interface). An .npz has beside these columns paths, by
number of the video; a .parquet has a column path. Both have facts, JSON of what was computed how.
The same command goes on where it was stopped. With N processes each takes every N-th video and
writes FILE-00000-of-0000N; an unreadable video is listed in FILE.unreadable.csv and has no rows.
"""

import argparse
import sys

from videomae_jax.commands import add_threads
from videomae_jax.host import count_cores

# Clip length, stride inside it, and hop, all in frames. 16 frames in a row every 4, or every 16:
# how the features published with VideoMAE V2 for ActionFormer were made (extract_tad_feature.py;
# it stretches the whole picture where we crop its centre). ActivityNet: InternVideo's, as the
# UniMD project describes them, on videos of 30 frames/s; not verified at the source.
PRESETS = {"thumos14": (16, 1, 4), "fineaction": (16, 1, 16), "activitynet": (16, 1, 16)}
POOLS = {"clip": "features", "time": "steps", "tokens": "tokens"}
COLUMNS = ("video", "start", "end", "first_frame", "last_frame", "features")
WINDOWS = 8  # at once, on each device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEOS", help="a list, a folder, or one video")
    parser.add_argument(
        "--checkpoint",
        metavar="SRC",
        required=True,
        help="a work directory, or whatever `videomae convert` reads",
    )
    parser.add_argument("--num-heads", type=int, metavar="N", help="for sizes not published")
    parser.add_argument("--decoder-num-heads", type=int, metavar="N", help="likewise")
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    parser.add_argument("--out", metavar="FILE", required=True, help=".npz, or .parquet")
    parser.add_argument(
        "--pool",
        choices=tuple(POOLS),
        default="clip",
        help="mean of a clip, mean of each time step, or all tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--window", type=int, metavar="F", help="frames of a clip (default: as in training)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="of frames inside a clip (default: likewise)"
    )
    parser.add_argument(
        "--hop", type=int, metavar="N", help="frames from clip to clip (default: side by side)"
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="window, stride and hop usual for temporal localisation on this data set",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help=f"windows at once (default: {WINDOWS} a device)"
    )
    add_threads(parser, of="decoders")
    parser.add_argument("--process-index", type=int, metavar="I", help="of this process, from 0")
    parser.add_argument("--process-count", type=int, metavar="N", help="how many share VIDEOS")


def main(args: argparse.Namespace) -> None:
    from contextlib import closing
    from pathlib import Path

    import jax

    from videomae_jax.commands.train import EXIT_STOPPED
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.unreadable import BadVideos
    from videomae_jax.devices.sharding import make_mesh
    from videomae_jax.errors import UserError
    from videomae_jax.inference import tables
    from videomae_jax.inference.features import check_batch, window_outputs
    from videomae_jax.inference.network import build_network
    from videomae_jax.inference.resumable import Parts, fingerprint
    from videomae_jax.inference.windows import WindowSampler, read_windows
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.models.tokens import patch_grid
    from videomae_jax.progress import Progress
    from videomae_jax.training.signals import stop_signals

    tables.check_ending(args.out)
    index, count = choose_process(args)
    out = shard_name(args.out, index, count)
    if Path(out).exists():
        raise UserError(f"{out} exists: give a new name, or remove it")
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.local_devices())
    batch_size = args.batch_size or WINDOWS * mesh.size
    check_batch(batch_size, mesh)
    videos = read_videos(args.videos)
    if videos.reader:
        raise UserError(
            f"{args.videos} holds records, which have no time stamps: give the list or the folder "
            "they were packed from"
        )
    params, config, *_ = load_checkpoint(
        args.checkpoint,
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        ema=args.ema,
    )
    clip = config.clip
    frames, stride, hop = choose_windows(args, clip)
    network = build_network(config)
    patch_grid((frames, clip.height, clip.width), network.patch)
    sampler = WindowSampler(
        frames=frames,
        stride=stride,
        hop=hop,
        height=clip.height,
        width=clip.width,
        channels=len(network.mean),
    )

    facts = {
        "model": fingerprint([params, config.model.to_json()]),
        "videos": fingerprint(list(videos.paths)),
        "pool": args.pool,
        "window": frames,
        "stride": stride,
        "hop": hop,
        "height": clip.height,
        "width": clip.width,
        "processes": f"{index} of {count}",
    }
    parts = Parts(f"{out}.parts", facts)
    if not parts.position:
        Path(f"{out}.unreadable.csv").unlink(missing_ok=True)
    bad = BadVideos(videos, max_share=1.0, file=f"{out}.unreadable.csv")
    place, first = parts.position or (0, 0)
    ids = list(range(index, len(videos), count))
    reader = read_windows(
        videos,
        ids[place:],
        sampler=sampler,
        first=first,
        bad=bad,
        threads=args.threads or count_cores(),
    )
    places = {number: place for place, number in enumerate(ids)}
    progress, done = Progress(len(ids), begun=place), 0
    with closing(reader) as windows, stop_signals() as stop:
        for rows, features in window_outputs(
            network, params, windows, name=POOLS[args.pool], batch_size=batch_size, mesh=mesh
        ):
            number, last = rows[-1]
            place, first = places[number], last.number + 1
            position = (place + 1, 0) if first == last.count else (place, first)
            parts.add(columns(rows, features), position=position)
            done += len(rows)
            progress.show(
                place + first / last.count,
                count=done,
                unit="windows",
                of=f"video {place + 1:,} of {len(ids):,}",
            )
            if stop.received:
                break
        progress.close()
        parts.flush()
    if stop.received:
        print(f"{stop.received}: saved {parts.folder}; the same command goes on from there")
        sys.exit(EXIT_STOPPED)

    # A video may turn out unreadable after some of its windows were.
    left_out = {number for number in ids if videos.paths[number] in bad.reasons}
    total, short = finish(out, parts, videos, left_out=left_out, facts=facts, bad=bad)
    parts.remove()
    print(f"{out}: {total:,} windows of {len(ids) - len(left_out):,} videos, {args.pool} features")
    if short:
        length = f"{(frames - 1) * stride + 1} frames ({frames} at stride {stride})"
        print(f"{short} videos are shorter than a clip of {length}: their last frame is repeated")
    if bad.reasons:
        print(bad)


def choose_process(args: argparse.Namespace) -> tuple[int, int]:
    """Return which of how many processes this is: as given, else as JAX was started."""
    import jax

    from videomae_jax.errors import UserError

    given = args.process_index, args.process_count
    if given == (None, None):
        return jax.process_index(), jax.process_count()
    if None in given or not 0 <= given[0] < given[1]:
        raise UserError(
            f"--process-index {given[0]}, --process-count {given[1]}: give both, an index from 0 "
            "to the count - 1"
        )
    return given


def shard_name(out: str, index: int, count: int) -> str:
    """Return the file of one process: FILE.npz, or FILE-00000-of-00004.npz."""
    stem, dot, ending = out.rpartition(".")
    return f"{stem}-{index:05}-of-{count:05}{dot}{ending}" if count > 1 else out


def choose_windows(args: argparse.Namespace, clip) -> tuple[int, int, int]:
    """Return clip length, stride and hop: as given, as the preset, as in training."""
    preset = PRESETS[args.preset] if args.preset else (clip.frames, clip.stride, None)
    given = (args.window, args.stride, args.hop)
    frames, stride, hop = (p if g is None else g for g, p in zip(given, preset, strict=True))
    return frames, stride, frames * stride if hop is None else hop


def columns(rows, features) -> dict:
    """Return the columns of some windows (id, Window) with their features [n, ...]."""
    import numpy as np

    windows = [window for _, window in rows]
    return {
        "video": np.array([number for number, _ in rows], np.int64),
        "start": np.array([window.seconds[0] for window in windows]),
        "end": np.array([window.seconds[1] for window in windows]),
        "first_frame": np.array([window.frames[0] for window in windows], np.int64),
        "last_frame": np.array([window.frames[-1] for window in windows], np.int64),
        "features": features,
    }


def finish(out: str, parts, videos, *, left_out: set, facts: dict, bad) -> tuple[int, int]:
    """Join the parts; return how many windows, and how many videos shorter than a clip."""
    import numpy as np

    from videomae_jax.errors import UserError
    from videomae_jax.inference.tables import write_table

    def read(*names):
        for rows in parts.read(*{"video", *names}):
            kept = ~np.isin(rows["video"], list(left_out))
            yield {name: rows[name][kept] for name in names}

    total, short = 0, set()
    for rows in read("video", "first_frame", "last_frame"):
        total += len(rows["video"])
        span = (facts["window"] - 1) * facts["stride"]
        short |= set(rows["video"][rows["last_frame"] - rows["first_frame"] < span].tolist())
    if not total:
        raise UserError(f"nothing to write: {bad}")
    write_table(out, read, COLUMNS, paths=videos.paths, facts=facts)
    return total, len(short)
