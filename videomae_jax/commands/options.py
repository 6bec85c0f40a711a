"""Arguments, files and exit codes that several commands share."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from videomae_jax.data.videos import Videos
    from videomae_jax.inference.network import Network

EXIT_STOPPED = 42  # everything is saved and can be resumed; XPK and Slurm scripts restart on it

CHECKPOINT = (
    "a work directory, a .pth, a .safetensors, a folder of transformers, hf://OWNER/NAME or a "
    "models:NAME of `videomae models`"
)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config, and let --config.KEY=VALUE override its keys."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="CONFIG",
        help="a recipe, NAME[:ARGS] such as pretrain:b,k400, or a file, FILE.py[:ARGS]; "
        "--config.KEY=VALUE overrides a key",
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let --config.KEY=VALUE override keys of the config; `args.overrides` lists them."""
    parser.set_defaults(overrides=[])


def add_checkpoint(
    parser: argparse.ArgumentParser, *, what: str = CHECKPOINT, decoder: bool = False
) -> None:
    """Add --checkpoint and --num-heads, and --decoder-num-heads if the decoder matters."""
    parser.add_argument("--checkpoint", metavar="SRC", required=True, help=what)
    add_heads(parser, decoder=decoder)


def name_checkpoint(path: str, config: "ConfigDict") -> str:
    """Return what was read, for a file of results: of a model of the hub with its commit.

    config: of the checkpoint that was read from `path`.
    """
    from videomae_jax.interop.sources import on_hub

    return config.init_from if on_hub(path) else path


def add_heads(parser: argparse.ArgumentParser, *, decoder: bool) -> None:
    """Add --num-heads, and --decoder-num-heads if the decoder matters."""
    parser.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="attention heads of the encoder, only needed for model sizes that are not published",
    )
    if decoder:
        parser.add_argument(
            "--decoder-num-heads",
            type=int,
            metavar="N",
            help="attention heads of the decoder, likewise",
        )


def add_ema(parser: Any) -> None:
    """Add --ema to a parser or a group."""
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights")


def add_batch_size(parser: argparse.ArgumentParser, *, of: str, default: str) -> None:
    """Add --batch-size, None by default. of: what a batch consists of, such as "videos"."""
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"{of} in a batch, on all devices (default: {default})",
    )


def add_annotations(parser: argparse.ArgumentParser) -> Any:
    """Add the arguments of `read_annotations`; return their group."""
    group = parser.add_argument_group("annotation files of action detection")
    group.add_argument(
        "--videos",
        default="",
        metavar="DIR",
        dest="films",
        help="folder of the videos that the file names (default: the folder of the file)",
    )
    group.add_argument(
        "--start",
        default="auto",
        metavar="SECOND",
        help="second of the annotations at which the video files begin (default: 0, or 900 if all "
        "are beyond the end otherwise)",
    )
    group.add_argument(
        "--class-list", default="", metavar="FILE", help="names and ids of the classes"
    )
    group.add_argument(
        "--excluded", default="", metavar="FILE", help="key frames to leave out: video,second"
    )
    return group


def read_annotations(args: argparse.Namespace, source: Path) -> "Videos":
    """Open annotations with the arguments of `add_annotations`."""
    from videomae_jax.data.annotations import read_key_frames

    return read_key_frames(
        source,
        videos=args.films,
        start=args.start,
        classes=args.class_list,
        excluded=args.excluded,
    )


def refuse_detector_options(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Raise UserError if one of the options that only a detector has is given."""
    from videomae_jax.errors import UserError

    for name in names:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for detectors, {args.checkpoint} is none: leave it "
                "out, or see docs/detection.md"
            )


def positive(text: str) -> int:
    """Return a whole number of 1 or more; the type of an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


def seed(text: str) -> int:
    """Return a seed of 32 bits; the type of an argument."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 to {2**32 - 1}")
    return int(text)


def add_merge_tokens(parser: argparse.ArgumentParser) -> None:
    """Add --merge-tokens, 0 by default."""

    parser.add_argument(
        "--merge-tokens",
        type=positive,
        default=0,
        metavar="R",
        help="of a classifier: merge the R most similar tokens in each block, which is faster, and "
        "print how often the most probable class is the same; docs/evaluation.md",
    )


def report_merging(
    network: "Network", params: Any, config: "ConfigDict", videos: "Videos"
) -> dict[str, Any]:
    """Print and return how a network that merges tokens agrees with the unmerged one."""
    if not network.merge_tokens:
        return {}
    from videomae_jax.inference.merging import measure_agreement

    found = measure_agreement(network, params, config, videos)
    print(found)
    return {"merging": found._asdict()}


def add_threads(parser: argparse.ArgumentParser, *, of: str) -> None:
    """Add --threads, None by default. of: what runs in a thread, such as "decoders"."""

    parser.add_argument(
        "--threads", type=positive, metavar="N", help=f"number of {of} (default: one per core)"
    )


def add_json(parser: argparse.ArgumentParser, *, of: str = "the result") -> None:
    """Add --json, a file for `write_json`. of: what it will contain."""
    parser.add_argument("--json", metavar="FILE", help=f"write {of} to this file")


def make_folder_of(path: str) -> None:
    """Make the folder of a file that is to be written. Raises UserError if that fails."""
    from videomae_jax.paths import as_path, make_folder, writing

    with writing(path):
        make_folder(as_path(path).parent)


def write_json(path: str | None, result: Any) -> None:
    """Write a result to the file of --json, if given; make its folder."""
    if path is None:
        return
    from videomae_jax.data.text_files import write_lines

    text = json.dumps(result, indent=1, ensure_ascii=False)
    # JSON must be UTF-8, names of files need not be: of these it has the escapes.
    write_lines(path, [text.encode("utf-8", "backslashreplace").decode()])
