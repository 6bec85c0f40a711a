"""Compute a feature of each video of a folder, and print its nearest neighbours.

python examples/features.py CHECKPOINT FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import videomae_jax as vm


def video_features(model: vm.Model, paths: list[Path]) -> np.ndarray:
    """Return one unit vector per video, float32 [videos, D], of its middle clip."""
    rows = [np.asarray(model.features(model.read_clip(path)))[0] for path in paths]
    # Features of one model point in similar directions: without their mean, cosines differ more.
    centred = np.stack(rows) - np.mean(rows, axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def main(checkpoint: str, folder: str) -> None:
    """Print the three nearest neighbours of each video by cosine similarity."""
    paths = sorted(Path(folder).rglob("*.mp4"))
    if len(paths) < 2:
        raise vm.UserError(f"{folder} has {len(paths)} .mp4 files: give a folder with 2 or more")
    features = video_features(vm.load(checkpoint), paths)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    for path, row in zip(paths, similarity, strict=True):
        nearest = np.argsort(-row)[: min(3, len(paths) - 1)]
        print(path.name, *(f"{paths[i].name} {row[i]:.2f}" for i in nearest), sep="  ")


if __name__ == "__main__":
    main(*sys.argv[1:])
