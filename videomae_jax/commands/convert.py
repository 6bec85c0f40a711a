"""Convert a checkpoint between this project, the original's .pth and transformers.

videomae convert SRC DST [--to native|mcg|hf|safetensors|stablehlo] [--num-heads N]

SRC: a work directory or one of its checkpoints, a .pth, a .safetensors, a folder of
transformers. An image ViT or MAE becomes a video encoder to start from. Anything that does not
fit is reported, all at once, and nothing is written.
"""

import argparse

ENDINGS = {".pth": "mcg", ".pt": "mcg", ".safetensors": "safetensors"}
LICENCE = (
    "If these are published VideoMAE or MAE weights: they are licensed CC-BY-NC 4.0, for "
    "non-commercial use only, and so is what is made from them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the checkpoint to read")
    parser.add_argument("target", metavar="DST", help="what to write; must not exist")
    parser.add_argument(
        "--to",
        choices=("native", "mcg", "hf", "safetensors", "stablehlo"),
        help="native: a work directory; mcg: a .pth with the original's names; hf: a folder for "
        "transformers; safetensors: one file with the original's names; stablehlo: a folder with "
        "the function video -> features, logits, to be served by jax.export (default: mcg for "
        ".pth, safetensors for .safetensors, else native)",
    )
    parser.add_argument(
        "--num-heads", type=int, metavar="N", help="of the encoder, for sizes not published"
    )
    parser.add_argument("--decoder-num-heads", type=int, metavar="N", help="of the decoder")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="frames of a clip (default: as SRC says, or 16)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="its side (default: as SRC says, or 224)"
    )
    parser.add_argument(
        "--inflate",
        metavar="HOW",
        help="mean or centre: how the patch embedding of an image model is spread over the frames "
        "of a tubelet (default: mean)",
    )
    parser.add_argument(
        "--tubelet", type=int, metavar="N", help="frames of a tubelet, likewise (default: 2)"
    )
    parser.add_argument(
        "--channels", type=int, metavar="N", help="change the patch embedding to so many channels"
    )


def main(args: argparse.Namespace) -> None:
    from pathlib import Path

    from videomae_jax.interop.checkpoint_files import load_checkpoint, save_checkpoint

    to = args.to or ENDINGS.get(Path(args.target).suffix, "native")
    checkpoint = load_checkpoint(
        args.source,
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        frames=args.frames,
        image_size=args.image_size,
        inflate=args.inflate,
        tubelet=args.tubelet,
        channels=args.channels,
    )
    if checkpoint.report:
        print(checkpoint.report)
    save_checkpoint(args.target, checkpoint, to=to)
    print(f"wrote {args.target} ({to})")
    if checkpoint.report:
        print(LICENCE)
