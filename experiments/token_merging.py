"""Measure token merging: how much faster it is, and how often the predicted class is the same.

    python experiments/token_merging.py speed [--model s] [--batch 2]
    python experiments/token_merging.py agreement CHECKPOINT LIST

speed times random weights; the networks take turns, so that other programs slow down all of them.
agreement evaluates one clip of each video of a list. Both print a table of Markdown.
"""

import argparse
import functools
import math
import statistics
import time

import jax
import numpy as np

import videomae_jax as vm
from videomae_jax.config import load_config
from videomae_jax.inference.evaluate import Evaluation
from videomae_jax.inference.network import build_network, outputs, untrained_params
from videomae_jax.models.tokens import patch_grid

SHARES = (0.0, 0.5, 0.85, 1.0, 1.15)  # of the tokens, that all blocks would merge together
TURNS = 8


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    speed = kinds.add_parser("speed")
    speed.add_argument("--model", default="s")
    speed.add_argument("--batch", type=int, default=2)
    agreement = kinds.add_parser("agreement")
    agreement.add_argument("checkpoint")
    agreement.add_argument("list")
    args = parser.parse_args()
    if args.kind == "speed":
        measure_speed(args.model, args.batch)
    else:
        measure_agreement(args.checkpoint, args.list)


def measure_speed(size: str, batch: int) -> None:
    """Print the time of classifying a batch with several numbers of merged tokens."""
    config = load_config(f"finetune:{size},k400", ["--config.model.classes=400"])
    clip, channels = config.clip, len(config.model.mean)
    video = np.zeros([batch, clip.frames, clip.height, clip.width, channels], np.uint8)
    params = untrained_params(config)
    tokens = math.prod(patch_grid(video.shape[1:4], config.model.patch))
    depth = config.model.encoder.depth
    times: dict[int, list[tuple[float, float]]] = {}
    steps = {}
    for merged in counts(tokens, depth):
        network = build_network(config, merge_tokens=merged)
        steps[merged] = jax.jit(functools.partial(outputs, network))
        jax.block_until_ready(steps[merged](params, video))
        times[merged] = []
    for _ in range(TURNS):
        for merged, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(step(params, video)["logits"])
            times[merged].append((time.perf_counter() - wall, time.process_time() - cpu))
    print("| R | tokens after the last block | CPU seconds a clip | clips/s | times more |")
    print("|---|---|---|---|---|")
    whole = statistics.median(wall for wall, _ in times[0])
    for merged, taken in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        left = tokens_left(tokens, merged, depth)
        rate, more = batch / wall, whole / wall
        print(f"| {merged} | {left:,} | {cpu / batch:.2f} | {rate:.2f} | {more:.2f} |")


def measure_agreement(checkpoint: str, videos: str) -> None:
    """Print the accuracy with merged tokens, and how often the answer is the same."""
    config = vm.load(checkpoint).config
    size = (config.clip.frames, config.clip.height, config.clip.width)
    tokens, depth = math.prod(patch_grid(size, config.model.patch)), config.model.encoder.depth
    print("| R | tokens after the last block | top-1, % | the same class, % of videos |")
    print("|---|---|---|---|")
    answers = None
    for merged in counts(tokens, depth):
        found = vm.evaluate(vm.load(checkpoint, merge_tokens=merged), videos, views="1x1")
        assert isinstance(found, Evaluation)
        answers = found.probabilities.argmax(-1) if answers is None else answers
        same = np.mean(found.probabilities.argmax(-1) == answers)
        left = tokens_left(tokens, merged, depth)
        print(f"| {merged} | {left:,} | {100 * found.top1.value:.1f} | {100 * same:.1f} |")


def counts(tokens: int, depth: int) -> list[int]:
    """Return how many tokens each block merges."""
    return [round(share * tokens / depth) for share in SHARES]


def tokens_left(tokens: int, merged: int, depth: int) -> int:
    """Return the tokens after the last block, each of which merges at most half of them."""
    for _ in range(depth):
        tokens -= min(merged, tokens // 2)
    return tokens


if __name__ == "__main__":
    main()
