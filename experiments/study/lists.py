"""The two label sets: their lists, and validation clips without their motion."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.motion_set import read_frames, write_clip
from videomae_jax.data.sources import read_videos

ROOT = Path(__file__).parents[2]
FIT = 0.75  # of the training clips of a class; the others choose the rates


@dataclass(frozen=True)
class LabelSet:
    """A folder of clips. stride: of pre-training, so that a clip is a whole video."""

    name: str
    folder: Path
    classes: int
    stride: int
    flip: bool
    views: str

    def options(self, task: str) -> dict[str, Any]:
        """Return the changes to the recipe of a task."""
        if task in ("pretrain", "contrast"):
            flip = {"augment.flip": self.flip} if task == "contrast" else {}
            return {"clip.stride": self.stride} | flip
        views = {} if task == "linear" else {"views": self.views}
        return {"augment.flip": self.flip, "model.classes": self.classes} | views


SETS = {
    label_set.name: label_set
    for label_set in (
        LabelSet("actions", ROOT / "data/mocap_studio", 12, stride=3, flip=True, views="3x1"),
        LabelSet("motion", ROOT / "data/mocap_motion", 8, stride=1, flip=False, views="1x1"),
    )
}


def freeze(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat the middle frame: no motion is left."""
    return np.stack([frames[len(frames) // 2]] * len(frames))


def shuffle(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Show the frames out of order: what stands in each is left, how it moves is not."""
    return rng.permutation(frames)


Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
CONTROLS: dict[str, Change] = {
    "frozen": freeze,
    "shuffled": shuffle,
}


def share_name(share: float) -> str:
    """Return the name of the list of a share of the training clips."""
    return "train" if share == 1 else f"train {100 * share:g} %"


def write_lists(
    out: Path, label_set: LabelSet, shares: tuple[float, ...], *, short_side: int
) -> None:
    """Write train, val, fit and tune (parts of train), shares of train, frozen and shuffled.

    A part has the first clips of each class: in the motion set, of the same bases. Clips are
    copies of this short side, so that reading them costs little beside a step.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = {
        split: write_changed(out / split, read_list(label_set.folder / f"{split}.csv"), short_side)
        for split in ("train", "val")
    }
    counts = np.bincount([label for _, label in rows["train"]])
    ranks = [
        sum(label == other for _, other in rows["train"][:i])
        for i, (_, label) in enumerate(rows["train"])
    ]
    ranked = [(row, rank, counts[row[1]]) for row, rank in zip(rows["train"], ranks, strict=True)]
    rows["fit"] = [row for row, rank, count in ranked if rank < FIT * count]
    rows["tune"] = [row for row, rank, count in ranked if rank >= FIT * count]
    for share in shares:
        chosen = [row for row, rank, count in ranked if rank < math.ceil(share * count)]
        rows[share_name(share)] = chosen
    for control, change in CONTROLS.items():
        rows[control] = write_changed(out / control, rows["val"], short_side, change)
    for name, chosen in rows.items():
        text = "".join(f'"{path}" {label}\n' for path, label in chosen)
        (out / f"{name}.csv").write_text(text)


def read_list(file: Path) -> list[tuple[Path, int]]:
    """Return the absolute paths and the labels of a list."""
    videos = read_videos(file)
    assert videos.labels is not None
    return list(zip(map(Path, videos.paths), videos.labels.tolist(), strict=True))


def write_changed(
    out: Path,
    rows: list[tuple[Path, int]],
    short_side: int,
    change: Change = lambda frames, rng: frames,
) -> list[tuple[Path, int]]:
    """Write resized and changed copies of clips, unless they exist, and return their list."""
    changed = []
    for number, (path, label) in enumerate(rows):
        file = out / f"{number:04d}.mp4"
        if not file.exists():
            frames = change(resize(read_frames(path), short_side), np.random.default_rng(number))
            write_clip(file, frames, quantizer=10)
        changed.append((file, label))
    return changed


def resize(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Resize frames, uint8 [F, H, W, 3], to a short side; the other one is made even."""
    height, width = frames.shape[1:3]
    if min(height, width) == short_side:
        return frames
    scale = short_side / min(height, width)
    size = tuple(2 * round(side * scale / 2) for side in (width, height))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
