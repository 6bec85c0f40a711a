"""Make docs/detection.png: one frame of the film that step 5 of docs/detection.md writes, enlarged.

python experiments/detection_figure.py drawn.mp4
"""

import argparse

import av
from PIL import Image

SECOND, TIMES = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("film")
    parser.add_argument("--out", default="docs/detection.png", help="(%(default)s)")
    args = parser.parse_args()
    with av.open(args.film) as container:
        frame = next(frame for frame in container.decode(video=0) if frame.time >= SECOND)
    size = (TIMES * frame.width, TIMES * frame.height)
    picture = frame.to_image().resize(size, Image.Resampling.LANCZOS)
    picture.quantize(256).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
