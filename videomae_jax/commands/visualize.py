"""Show what a pre-trained model makes of the hidden patches of a video.

videomae visualize VIDEO --checkpoint SRC --out FILE.gif [--ratio 0.9]
videomae visualize VIDEO --checkpoint SRC --out FILE.png --compare-ratios 0.75,0.9,0.95

SRC: a pre-training run, or anything else `videomae convert` reads that has a decoder.
"""

import argparse

# A GIF cannot play more.
MAX_FPS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "video",
        metavar="VIDEO",
        nargs="?",
        help="a video file of any length (default: the first one held out from training)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="SRC",
        required=True,
        help="a work directory, one of its checkpoints, a .pth, a .safetensors, or a folder of "
        "transformers, of a pre-trained model",
    )
    parser.add_argument(
        "--num-heads", type=int, metavar="N", help="of the encoder, for sizes not published"
    )
    parser.add_argument("--decoder-num-heads", type=int, metavar="N", help="of the decoder")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help=".gif or .mp4: a film; .png: a sheet"
    )
    ratios = parser.add_mutually_exclusive_group()
    ratios.add_argument(
        "--ratio", type=float, help="share of the patches to hide (default: as in training)"
    )
    ratios.add_argument(
        "--compare-ratios",
        type=_ratios,
        metavar="R,R,...",
        help="several shares, one row each",
    )
    parser.add_argument(
        "--mask",
        metavar="KIND",
        help="tube, random, frame or running_cell (default: as in training)",
    )
    parser.add_argument(
        "--statistics",
        choices=("visible", "truth"),
        default="visible",
        help="where a model of normalized patches gets the colour and contrast of hidden ones: "
        "a guess from visible patches, or the hidden patches themselves, which leaks the answer "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: %(default)s)")
    parser.add_argument(
        "--stride", type=int, help="take every STRIDE-th frame (default: as in training)"
    )
    parser.add_argument(
        "--max-frames", type=int, default=64, help="show at most so many (default: %(default)s)"
    )
    parser.add_argument(
        "--fps", type=int, default=8, help="frames a second of the film (default: %(default)s)"
    )


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r} is not a list of numbers: use such as 0.75,0.9"
        raise argparse.ArgumentTypeError(message) from None


def main(args: argparse.Namespace) -> None:
    import functools
    from pathlib import Path

    import jax
    import numpy as np

    from videomae_jax import pictures
    from videomae_jax.errors import UserError
    from videomae_jax.inference.network import build_network
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.models.masking import draw_mask, mask_counts
    from videomae_jax.models.reconstruct import Reconstruction, reconstruct, slide, statistics_label
    from videomae_jax.models.tokens import patch_grid

    pictures.check_ending(args.out)
    if not 1 <= args.fps <= MAX_FPS:
        raise UserError(f"--fps {args.fps}: use 1 to {MAX_FPS}")
    checkpoint = load_checkpoint(
        args.checkpoint, num_heads=args.num_heads, decoder_num_heads=args.decoder_num_heads
    )
    params, config = jax.device_put(checkpoint.params), checkpoint.config
    if "decoder" not in params:
        what = "is a classifier" if "head" in params else "holds an encoder only"
        raise UserError(
            f"{args.checkpoint} {what}: without a decoder it reconstructs nothing; "
            "give a pre-training run, or a released file with its decoder"
        )
    if args.video is None:
        if not config.data.train:
            raise UserError(f"{args.checkpoint} knows no videos: give one, VIDEO")
        args.video = _held_out(config)
    model, clip = build_network(config), config.clip
    grid = patch_grid((clip.frames, clip.height, clip.width), model.patch)
    kind = args.mask or config.mask.kind
    ratios = args.compare_ratios or [config.mask.ratio if args.ratio is None else args.ratio]
    counts = {ratio: mask_counts(kind, grid, ratio=ratio) for ratio in ratios}

    stride = clip.stride if args.stride is None else args.stride
    frames, total = _read_frames(
        args.video,
        stride=stride,
        limit=args.max_frames,
        height=clip.height,
        width=clip.width,
        channels=len(model.mean),
    )
    indices, shown = slide(len(frames), frames=clip.frames)
    predict = jax.jit(
        functools.partial(
            reconstruct,
            model,
            normalized=config.normalized_targets,
            statistics=args.statistics,
        )
    )

    reconstructions = {}
    for ratio, (visible, masked) in counts.items():
        parts = []
        for number, places in enumerate(indices):
            # The same keys at every ratio: more is hidden, nothing comes back.
            keys = jax.random.fold_in(jax.random.key(args.seed), number)[None]
            mask = draw_mask(keys, kind, grid=grid, ratio=ratio)
            parts.append(jax.device_get(predict(params, frames[places][None], mask)))
        whole: Reconstruction = jax.tree.map(lambda *clips: np.concatenate(clips), *parts)
        count = whole.sums["count"].sum()
        loss, zero = (whole.sums[name].sum() / count for name in ("error", "square"))
        title = (
            f"{kind} mask, {masked / (visible + masked):.1%} hidden: "
            f"loss {loss:.3f}, predicting zero {zero:.3f}"
        )
        print(title)
        videos = (video[shown] for video in whole[:3])
        reconstructions[title] = Reconstruction(*videos, sums=whole.sums)

    label = statistics_label(args.statistics, normalized=config.normalized_targets)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pictures.write(
        args.out,
        frames,
        reconstructions,
        times=range(0, len(frames) * stride, stride),
        captions=[label],
        fps=args.fps,
    )
    print(label)
    print(f"{args.out}: {len(frames)} frames at stride {stride} of the {total} in {args.video}")


def _held_out(config) -> str:
    """Return the first video held out from a run, or of its training where none was."""
    from videomae_jax.tasks.build import open_videos

    train, held_out = open_videos(config)
    return (held_out or train).paths[0]


def _read_frames(path: str, *, stride: int, limit: int, height: int, width: int, channels: int):
    """Read every stride-th frame, at most `limit`, cropped as in evaluation.

    Returns uint8 [n, H, W, C] and the number of frames in the file.
    """
    import numpy as np

    from videomae_jax.data.decode import UnreadableVideo, read_clip
    from videomae_jax.data.samplers import resize_crop
    from videomae_jax.data.sampling import center_crop_box
    from videomae_jax.errors import UserError

    for name, value in (("stride", stride), ("max-frames", limit)):
        if value < 1:
            raise UserError(f"--{name} {value}: use 1 or more")
    total = 0

    def choose(count: int) -> np.ndarray:
        nonlocal total
        total = count
        return np.arange(0, count, stride)[:limit]

    try:
        frames = read_clip(path, choose, channels=channels)
    except UnreadableVideo as error:
        raise UserError(f"cannot read {path}: {error}") from None
    box = center_crop_box(
        frames.shape[2], frames.shape[1], target_width=width, target_height=height
    )
    return resize_crop(frames, box=box, width=width, height=height), total
