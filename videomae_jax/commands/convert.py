"""Convert a checkpoint between this project, the original's .pth and transformers.

SRC is a work directory or one of its checkpoints, a .pth or .safetensors (pre-trained, fine-tuned
or an action detector of AVA) or a folder of transformers. An image ViT or MAE becomes a video
encoder, to start a training from. If tensors do not fit, all of them are reported and nothing is
written.

SRC and --checkpoint may be a model of the hub, hf://OWNER/NAME[@REVISION][/PATH], or one of
`videomae models`, models:NAME. With hf://OWNER/NAME as DST the model is pushed, with a card made
from the run; a new repository is private.

examples:
  videomae convert runs/demo model.pth
  videomae convert vit_b.pth runs/vit_b
  videomae convert ava.pth runs/ava
  videomae convert runs/finetune hub/ --to hf
  videomae convert runs/finetune hf://OWNER/NAME --to hf
  videomae convert runs/finetune model.onnx
"""

import argparse

from videomae_jax.commands import options

TASKS = ("detect", "classify")
ENDINGS = {".pth": "mcg", ".pt": "mcg", ".safetensors": "safetensors", ".onnx": "onnx"}
LICENCE = (
    "If these are published VideoMAE or MAE weights: they are licensed CC-BY-NC 4.0, for "
    "non-commercial use only, and so is what is made from them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", metavar="SRC", help="the checkpoint to read")
    parser.add_argument("target", metavar="DST", help="the file or folder to write; must not exist")
    parser.add_argument(
        "--to",
        choices=("native", "mcg", "hf", "safetensors", "stablehlo", "onnx"),
        help="native: a work directory; mcg: a .pth with the original's names; hf: a folder for "
        "transformers; safetensors: one file with the original's names; stablehlo: a folder with "
        "the function from a video to features and logits, for jax.export; onnx: one file with the "
        "same function, for ONNX Runtime (default: by the ending .pth, .safetensors or .onnx, else "
        "native)",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="what a file with a head is; needed for an action detector without the 80 outputs of "
        "AVA, which has the names of a classifier that does not pool its tokens",
    )
    options.add_heads(parser, decoder=True)
    card = parser.add_argument_group("the card of a model that is pushed")
    card.add_argument(
        "--scores",
        metavar="FILE",
        help="the JSON of `videomae evaluate --json`, in addition to the scores of the run itself",
    )
    card.add_argument(
        "--licence",
        metavar="ID",
        help="of the weights, such as apache-2.0 (default: that of the model of the hub that the "
        "run started from)",
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="frames of a clip, of files that are no run of ours (default: as in SRC, or 16)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="height and width of frames in pixels, likewise (default: as in SRC, or 224)",
    )
    parser.add_argument(
        "--inflate",
        metavar="HOW",
        help="for an image model: spread the patch embedding over all frames of a patch, mean, or "
        "put it on the middle one, centre (default: mean)",
    )
    parser.add_argument(
        "--tubelet",
        type=int,
        metavar="N",
        help="for an image model: frames of a patch (default: 2)",
    )
    parser.add_argument(
        "--channels", type=int, metavar="N", help="change the patch embedding to N channels"
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from pathlib import Path

    from videomae_jax.errors import UserError
    from videomae_jax.interop import hub
    from videomae_jax.interop.checkpoint_files import (
        left_out_of,
        load_checkpoint,
        save_checkpoint,
    )
    from videomae_jax.interop.sources import on_hub

    push = hub.is_address(args.target)
    if not push and (args.scores or args.licence):
        raise UserError(
            "--scores and --licence are for the card of a model that is pushed: leave "
            "them out, or give hf://OWNER/NAME as DST"
        )
    to = args.to or ("hf" if push else ENDINGS.get(Path(args.target).suffix, "native"))
    checkpoint = load_checkpoint(
        args.source,
        task=args.task,
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
    if push:
        from videomae_jax.interop.publish import publish

        lines = publish(
            args.target,
            checkpoint,
            source=args.source,
            to=to,
            scores=args.scores,
            licence=args.licence,
        )
        print("\n".join(lines))
    else:
        save_checkpoint(args.target, checkpoint, to=to)
        print(f"wrote {args.target} ({to})")
    for line in left_out_of(checkpoint.config, to):
        print(f"note: {line}")
    if checkpoint.report and not on_hub(args.source):  # the hub says the licence
        print(LICENCE)
