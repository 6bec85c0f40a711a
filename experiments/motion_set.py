"""Make data/mocap_motion: clips whose class is told by motion alone. It takes a minute.

    .venv/bin/python experiments/motion_set.py [--out DIR]

Two actors of data/mocap_studio stand side by side. Each has 8 states: 8 frames of its clip, moved
on by an eighth of the width of its half, which is a ring: what leaves it on one side enters on
the other. One actor goes once through its states while the other stands still, then the other
does. A class is who moves first, in which direction, and how fast: once around the ring, or twice
at double speed in the same time.

A base is a pair of actors with their states. It gives one clip of each class. All of them show
the same 16 frames, in another order, and each frame is compressed without the others. So a frame,
or the set of frames, says nothing about the class. Every actor starts in a random state, so that a
frame says nothing together with its position either; the first and the middle frame of all clips
of a base are the same.
"""

import argparse
import io
import itertools
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from PIL import Image

ROOT = Path(__file__).parent.parent
STUDIO = ROOT / "data/mocap_studio"
SIZE, STATES, SPACING = 64, 8, 2  # pixels; of an actor; frames of the source between states
BASES = {"train": 64, "val": 24}
FACTORS = {"first": ("left", "right"), "direction": ("left", "right"), "speed": ("fast", "slow")}
# In the order of their labels: those of factor i differ in bit 2 - i.
CLASSES = tuple(itertools.product(*FACTORS.values()))
ROUND = {"slow": (0, 1, 2, 3, 4, 5, 6, 7), "fast": (0, 2, 4, 6, 1, 3, 5, 7)}
# Every frame is a key frame, with constant quantizers: its bytes depend on no other frame.
CODEC = {
    "preset": "veryslow",
    "threads": "1",
    "x264-params": "keyint=1:ipratio=1:chroma-qp-offset=6",
}


def class_name(first: str, direction: str, speed: str) -> str:
    """Return the name of the folder of a class."""
    return f"{first}_first_to_{direction}_{speed}"


def choose_states(
    first: str, direction: str, speed: str, *, starts: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return the states of the left and of the right actor in each frame of a clip.

    starts: the states in which they start, and stand still.
    """
    sign = 1 if direction == "right" else -1
    left, right = ([(start + sign * step) % STATES for step in ROUND[speed]] for start in starts)
    parts = [(state, starts[1]) for state in left], [(starts[0], state) for state in right]
    return parts[0] + parts[1] if first == "left" else parts[1] + parts[0]


def make_states(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the states of an actor, uint8 [STATES, SIZE, SIZE / 2, 3], of a clip [F, H, W, 3].

    In half of the actors the movement is reversed: what it looks like says nothing about the
    direction.
    """
    start = rng.integers(len(clip) - SPACING * (STATES - 1))
    frames = clip[start : start + SPACING * STATES : SPACING][:: rng.choice((1, -1))]
    width = frames.shape[2]
    middle = frames[:, :, width // 4 : width - width // 4]
    images = [Image.fromarray(f).resize((SIZE // 2, SIZE), Image.Resampling.BOX) for f in middle]
    step = SIZE // 2 // STATES
    return np.stack([np.roll(np.asarray(image), step * n, 1) for n, image in enumerate(images)])


def read_frames(file: Path) -> np.ndarray:
    """Return all frames of a video, uint8 [F, H, W, 3]."""
    with av.open(str(file)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def write_clip(file: Path, frames: np.ndarray, *, quantizer: int = 32) -> None:
    """Write frames, uint8 [F, H, W, 3], as H.264 of key frames only. quantizer: 0 is lossless."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options=CODEC | {"qp": str(quantizer)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # A tenth of the file would be a note of the settings of x264.
        without_note = BitStreamFilterContext("filter_units=remove_types=6", stream)
        images = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
        for image in [*images, None]:
            for packet in stream.encode(image):
                container.mux(without_note.filter(packet))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.getvalue())


def make_set(out: Path, bases: dict[str, int]) -> None:
    """Write so many bases of each split, with a list of each."""
    for number, (split, count) in enumerate(bases.items()):
        rng = np.random.default_rng((2026, number))
        lines = []
        sources = (STUDIO / f"{split}.csv").read_text().splitlines()
        pairs = rng.permutation([line.rsplit(" ", 1)[0] for line in sources])
        for base in range(count):
            if base % STATES == 0:  # every state is as frequent as the others
                starts = rng.permutation(STATES).tolist(), rng.permutation(STATES).tolist()
            start = starts[0][base % STATES], starts[1][base % STATES]
            left, right = (
                make_states(read_frames(STUDIO / path), rng)
                for path in pairs[2 * base : 2 * base + 2]
            )
            for factors in CLASSES:
                name = class_name(*factors)
                path = f"{split}/{name}/{base:03d}.mp4"
                shown = choose_states(*factors, starts=start)
                frames = [np.concatenate([left[a], right[b]], axis=1) for a, b in shown]
                write_clip(out / path, np.stack(frames))
                lines.append(f"{path} {name}\n")
        (out / f"{split}.csv").write_text("".join(sorted(lines)))


def main() -> None:
    """Make the set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data/mocap_motion")
    make_set(parser.parse_args().out, BASES)


if __name__ == "__main__":
    main()
