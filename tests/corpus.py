"""Write a corpus of unusual and broken videos: python tests/corpus.py DIR

Each is listed in DIR/corpus.csv, with one of three labels.
"""

import sys
from pathlib import Path

import numpy as np
from videos import turn, write_broken, write_video

LABELS = ("jump", "roll", "walk")
FRAMES = 24
# These can be read. `shift` makes their contents differ.
READABLE = {
    "one_frame.mp4": dict(count=1),
    "fewer_than_a_clip.mp4": dict(count=5),
    "odd_width.mp4": dict(width=97, height=65, pixels="yuv444p"),
    "portrait.mp4": dict(width=128, height=80),  # turned below
    "uneven.mp4": dict(times=np.cumsum(np.random.default_rng(1).integers(1, 9, FRAMES))),
    "grey.mkv": dict(codec="ffv1", pixels="gray"),
    "alpha.mov": dict(codec="png", pixels="rgba"),
    "ten_bits.mp4": dict(pixels="yuv420p10le"),
    "one_pixel.mov": dict(width=1, height=1, codec="png", pixels="rgb24"),
    "with spaces, ümläute und 日本語/ein Film.mp4": dict(),
    "plain.webm": dict(codec="libvpx", options={"deadline": "realtime"}),
}


def write_corpus(folder: Path) -> dict[str, str]:
    """Write every file and the list; return {path: the reason it is unreadable, or ""}.

    Reasons are patterns. Missing files and folders are listed too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reasons = write_broken(folder / "broken")
    for index, (name, settings) in enumerate(READABLE.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        settings = dict(count=FRAMES, shift=17 * index) | settings
        reasons[write_video(folder / name, **settings)] = ""
    turn(folder / "portrait.mp4", degrees=90)
    rows = [
        f'"{Path(path).relative_to(folder)}",{LABELS[index % len(LABELS)]}\n'
        for index, path in enumerate(reasons)
    ]
    (folder / "corpus.csv").write_text("".join(rows), encoding="utf-8")
    return reasons


if __name__ == "__main__":
    found = write_corpus(Path(sys.argv[1]).absolute())
    for path, reason in found.items():
        print(f"{path}: {reason or 'readable'}")
    print(f"{len(found)} listed, {sum(map(bool, found.values()))} unreadable")
