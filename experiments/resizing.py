"""Compare resizing by swscale, as the readers do, with Pillow's: CPU time and levels.

python experiments/resizing.py [--pairs N] [--videos FILE ...] [--json FILE]

A clip is 16 frames of noise, cut out of wider frames as a crop is. The two take turns in one
process; the ratio is the median over pairs, so that it holds on a machine that others use too.
Of videos: what would change if swscale converted the colours and resized in one pass.
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from videomae_jax.data.resize import resize_crop, resize_part

SIDE, FRAMES, MARGIN = 224, 16, 100
# Height and width of the crop: those of pre-training from a short side of 256, then whole short
# sides of 240, 360 and 720.
CROPS = ((256, 256), (256, 224), (224, 256), (168, 192), (240, 240), (360, 360), (720, 720))


def compare(height: int, width: int, *, pairs: int) -> dict:
    """Return the CPU milliseconds of a clip, their ratio, and how far apart the values are."""
    rng = np.random.default_rng(0)
    shape = (FRAMES, height, width + MARGIN, 3)
    frames = rng.integers(0, 256, shape, np.uint8)
    box = (MARGIN // 2, 0, width, height)
    part = frames[:, :, MARGIN // 2 : MARGIN // 2 + width]

    def by_swscale() -> np.ndarray:
        return resize_crop(frames, box=box, width=SIDE, height=SIDE)

    def by_pillow() -> np.ndarray:
        return resize_part(part, width=SIDE, height=SIDE)

    apart = np.abs(by_swscale().astype(int) - by_pillow())
    times: dict = {by_swscale: [], by_pillow: []}
    for pair in range(pairs):
        for resize in sorted(times, key=lambda f: f.__name__, reverse=bool(pair % 2)):
            began = time.process_time()
            resize()
            times[resize].append(1e3 * (time.process_time() - began))
    ratios = sorted(p / s for s, p in zip(times[by_swscale], times[by_pillow], strict=True))
    return {
        "crop": [height, width],
        "pillow_ms": statistics.median(times[by_pillow]),
        "swscale_ms": statistics.median(times[by_swscale]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "largest_difference": int(apart.max()),
        "mean_difference": float(apart.mean()),
    }


def one_pass(path: str) -> dict:
    """Return how far the values of a single pass are from converting first, then resizing.

    Every fourth of the first frames, whole, with the most exact flags; CPU milliseconds of each.
    """
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
    flags |= Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT
    with av.open(path) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(48), strict=False)]
    frames = frames[::4]
    scale = SIDE / min(frames[0].width, frames[0].height)
    size = dict(width=round(frames[0].width * scale), height=round(frames[0].height * scale))
    reformatter, times, apart = VideoReformatter(), [], []
    for frame in frames:
        began = time.process_time()
        once = reformatter.reformat(
            frame, **size, format="rgb24", interpolation=flags, threads=1
        ).to_ndarray()
        between = time.process_time()
        twice = resize_part(frame.to_ndarray(format="rgb24", threads=1)[None], **size)[0]
        times.append((1e3 * (between - began), 1e3 * (time.process_time() - between)))
        apart.append(np.abs(once.astype(int) - twice))
    levels = np.stack(apart)
    return {
        "video": Path(path).name,
        "one_pass_ms": statistics.median(once for once, _ in times),
        "two_steps_ms": statistics.median(twice for _, twice in times),
        "largest_difference": int(levels.max()),
        "mean_difference": float(levels.mean()),
        "beyond_one_level": float((levels > 1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--videos", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [compare(*crop, pairs=args.pairs) for crop in CROPS]
    print("| crop | Pillow, ms | swscale, ms | ratio, quartiles | levels apart, most and mean |")
    print("|---|---|---|---|---|")
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"| {row['crop'][0]}x{row['crop'][1]} | {row['pillow_ms']:.1f} | "
            f"{row['swscale_ms']:.1f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['largest_difference']}, {row['mean_difference']:.2f} |",
            flush=True,
        )
    passes = [one_pass(path) for path in args.videos]
    for row in passes:
        print(
            f"{row['video']}, one pass: {row['one_pass_ms']:.2f} ms a frame, of "
            f"{row['two_steps_ms']:.2f} in two steps; {row['beyond_one_level']:.1%} of the values "
            f"are more than one level away, {row['largest_difference']} at most"
        )
    if args.json:
        result = {
            "rows": rows,
            "one_pass": passes,
            "machine": platform.platform(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("av", "pillow", "numpy")},
            "date": time.strftime("%Y-%m-%d"),
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
