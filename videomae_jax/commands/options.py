"""Arguments, files and exit codes that several commands share."""

import argparse
import json
from pathlib import Path
from typing import Any

EXIT_STOPPED = 42  # everything is saved and can be resumed; XPK and Slurm scripts restart on it

CHECKPOINT = "a work directory, or anything else `videomae convert` reads"


def add_checkpoint(
    parser: argparse.ArgumentParser, *, what: str = CHECKPOINT, decoder: bool = False
) -> None:
    """Add --checkpoint and --num-heads, and --decoder-num-heads where the decoder matters."""
    parser.add_argument("--checkpoint", metavar="SRC", required=True, help=what)
    add_heads(parser, decoder=decoder)


def add_heads(parser: argparse.ArgumentParser, *, decoder: bool) -> None:
    """Add --num-heads, and --decoder-num-heads where the decoder matters."""
    parser.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="attention heads of the encoder, for model sizes that are not published",
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
    """Add --batch-size, None where it is not given."""
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help=f"{of} in a batch (default: {default})"
    )


def add_threads(parser: argparse.ArgumentParser, *, of: str) -> None:
    """Add --threads, None where it is not given: the number of `of`, such as "decoders"."""

    def positive(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
        return int(text)

    parser.add_argument(
        "--threads", type=positive, metavar="N", help=f"number of {of} (default: one per core)"
    )


def add_json(parser: argparse.ArgumentParser, *, of: str = "the result") -> None:
    """Add --json; `write_json` writes the file."""
    parser.add_argument("--json", metavar="FILE", help=f"write {of} to this file")


def write_json(path: str | None, result: Any) -> None:
    """Write a result to the file of --json, if one was given; make its folder."""
    if path is None:
        return
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
