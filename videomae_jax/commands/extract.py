"""Write features of videos, window by window, with any model.

A window slides over each video; the last window ends at the last frame. Frames are cropped and
normalized as in the training of the model. Each window is one row: video (its position in VIDEOS),
start and end (seconds from the first frame), first_frame, last_frame, and features (float32: clip
[D], time [T, D], tokens [N, D]; the same values as in Python). An .npz also has "paths", the file
of each video; a .parquet has a column "path". Both store the settings as JSON under "facts".

An --out that ends in / is a folder with NAME.npy for each video NAME.*, float32 [n, D], as tools of
temporal localization (ActionFormer) read them, and facts.json. Row i is the window from frame
i * hop on; a last window that starts elsewhere is left out.

The same command resumes where it was stopped. With N processes, each takes every N-th video and
writes FILE-00000-of-0000N. Unreadable videos have no rows; FILE.unreadable.csv lists them.

examples:
  videomae extract clips/ --checkpoint runs/demo --out features.npz
  videomae extract list.csv --checkpoint vit_b.pth --out features.parquet --pool time
  videomae extract thumos/ --checkpoint runs/finetune --out features/ --preset thumos14
"""

import argparse
import sys

from videomae_jax.commands import options

# Window, stride and hop, in frames. THUMOS14 and FineAction: as the features published with
# VideoMAE V2 for ActionFormer were made (extract_tad_feature.py; it stretches the whole image,
# this command crops the centre). ActivityNet: as the UniMD project describes the features of
# InternVideo, on videos of 30 frames/s; not verified at the source.
PRESETS = {"thumos14": (16, 1, 4), "fineaction": (16, 1, 16), "activitynet": (16, 1, 16)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("videos", metavar="VIDEOS", help="a list, a folder, or one video")
    options.add_checkpoint(parser, decoder=True)
    options.add_ema(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="the file to write, .npz or .parquet, or a folder of one .npy a video, FOLDER/",
    )
    parser.add_argument(
        "--pool",
        choices=("clip", "time", "tokens"),
        default="clip",
        help="clip: the mean of all tokens; time: the mean of each time step; tokens: all tokens "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--window", type=int, metavar="F", help="frames in a window (default: as in training)"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="take every N-th frame in a window (default: as in training)",
    )
    parser.add_argument(
        "--hop", type=int, metavar="N", help="start a window every N frames (default: no overlap)"
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="usual window, stride and hop for temporal localization on this data set",
    )
    options.add_batch_size(parser, of="windows", default="8 per device")
    options.add_threads(parser, of="decoders")
    options.add_merge_tokens(parser)
    parser.add_argument(
        "--process-index", type=int, metavar="I", help="number of this process, 0 to N - 1"
    )
    parser.add_argument(
        "--process-count", type=int, metavar="N", help="number of processes that share VIDEOS"
    )
    options.add_json(parser, of="the counts")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.data.sources import read_videos
    from videomae_jax.inference.extract import check_output, check_pool, extract, parts_name
    from videomae_jax.inference.network import build_network
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.training.signals import stop_signals

    index, count = choose_process(args)
    videos = read_videos(args.videos)
    check_output(
        args.out,
        videos,
        pool=args.pool,
        index=index,
        count=count,
        batch_size=args.batch_size,
    )
    params, config, *_ = load_checkpoint(
        args.checkpoint,
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        ema=args.ema,
    )
    preset = PRESETS[args.preset] if args.preset else (None, None, None)
    given = (args.window, args.stride, args.hop)
    window, stride, hop = (p if g is None else g for g, p in zip(given, preset, strict=True))
    network = build_network(config, merge_tokens=args.merge_tokens)
    check_pool(args.pool, network)
    merging = options.report_merging(network, params, config, videos)
    with stop_signals() as stop:
        found = extract(
            network,
            params,
            config,
            videos,
            out=args.out,
            pool=args.pool,
            window=window,
            stride=stride,
            hop=hop,
            batch_size=args.batch_size,
            threads=args.threads,
            index=index,
            count=count,
            stopped=lambda: stop.received is not None,
        )
    if found is None:
        saved = parts_name(args.out, index, count)
        print(f"{stop.received}: saved {saved}; the same command resumes from there")
        sys.exit(options.EXIT_STOPPED)
    print(
        f"{found.path}: {found.windows:,} windows of {found.videos:,} videos, {args.pool} features"
    )
    if found.short:
        print(
            f"{found.short} videos are shorter than a window of {found.span} frames: their last "
            "frame is repeated"
        )
    bad = found.unreadable
    if bad.reasons:
        print(bad)
    result = dict(file=found.path, windows=found.windows, videos=found.videos, short=found.short)
    options.write_json(args.json, result | {"unreadable": bad.reasons} | merging)


def choose_process(args: argparse.Namespace) -> tuple[int, int]:
    """Return (index, count) of this process, as given or as JAX was started."""
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
