"""Compute the probabilities of the actions in every box of key frames, resuming from saved ones."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, pick_videos
from videomae_jax.inference.engine import data_mesh, jit_batch, place_params, run_batches
from videomae_jax.inference.resumable import Parts, collect_rows, fingerprint
from videomae_jax.models.detector import VideoDetector
from videomae_jax.progress import Progress
from videomae_jax.tasks.detect import box_logits, box_sums
from videomae_jax.tasks.task import Batch, Params


class BoxProbabilities(NamedTuple):
    """The results of the model, in rows that can be saved.

    A row is a box; a key frame without boxes has one row, whose box is -1. frames: int64 [n],
    indices into the list. boxes: int64 [n], indices into the boxes of the key frame.
    probabilities: float32 [n, K]. errors: float32 [n], the loss of the whole key frame in its
    first row, else 0.
    """

    frames: np.ndarray
    boxes: np.ndarray
    probabilities: np.ndarray
    errors: np.ndarray


# The key frames whose clips have one size: their indices in the list, their sampler.
Groups = list[tuple[list[int], ClipSampler]]


def probability_settings(
    network: VideoDetector,
    params: Params,
    config: ConfigDict,
    shown: Videos,
    groups: Groups,
    *,
    boxes: str,
) -> dict[str, str]:
    """Return the settings on which the probabilities depend, see `resumable.open_output`.

    Also those on which the order of the batches depends: the sizes of the videos.
    """
    frames = shown.key_frames
    assert frames is not None
    keys = [config.model.to_json(), config.clip.to_json(), config.roi.to_json()]
    given = [frames.seconds, frames.offsets, frames.boxes, frames.targets]
    return {
        "model": fingerprint([params, *keys, config.boxes.to_json()]),
        "key-frames": fingerprint([list(shown.paths), *given]),
        "video-sizes": fingerprint([[*sampler.shape, *indices] for indices, sampler in groups]),
        "boxes": boxes or "annotated",
        "dtype": network.run.dtype.name,
    }


def compute_probabilities(
    network: VideoDetector,
    params: Params,
    config: ConfigDict,
    shown: Videos,
    groups: Groups,
    *,
    extend: tuple[float, float],
    batch_size: int,
    scores: Parts | None,
    bad: BadVideos,
    stopped: Callable[[], bool],
    report: Callable[[str], None],
) -> BoxProbabilities | None:
    """Return the probabilities of all boxes of key frames, in their order; None if stopped.

    groups: of the list. extend: see `tasks.detect.box_logits`. scores: where they are saved after
    every batch, and from which the computation resumes; None saves nothing. The other arguments
    are those of `evaluate_boxes.evaluate_boxes`.
    """
    found: list[BoxProbabilities] = []
    begun = 0
    if scores and scores.position:
        (begun,) = scores.position
        found = [BoxProbabilities(**rows) for rows in scores.read(*BoxProbabilities._fields)]
        count = sum(len(np.unique(rows.frames)) for rows in found)
        report(f"{scores.folder}: {count:,} key frames were scored before")
    batches = _run(
        network,
        params,
        config,
        shown,
        groups,
        extend=extend,
        batch_size=batch_size,
        begun=begun,
        bad=bad,
    )
    total = sum(-(-len(indices) // batch_size) for indices, _ in groups)

    def show(progress: Progress, batch: int) -> None:
        progress.show(
            batch,
            count=(batch - begun) * batch_size,
            unit="key frames",
            of=f"batch {batch:,} of {total:,}",
        )

    computed = collect_rows(
        batches,
        scores,
        columns=BoxProbabilities._asdict,
        begun=begun,
        total=total,
        show=show,
        stopped=stopped,
    )
    if computed is None:
        return None
    joined = BoxProbabilities(*map(np.concatenate, zip(*found, *computed, strict=True)))
    order = np.lexsort((joined.boxes, joined.frames))
    return BoxProbabilities(*(column[order] for column in joined))


def _run(
    network: VideoDetector,
    params: Params,
    config: ConfigDict,
    shown: Videos,
    groups: Groups,
    *,
    extend: tuple[float, float],
    batch_size: int,
    begun: int,
    bad: BadVideos,
) -> Generator[BoxProbabilities, None, None]:
    """Yield the results of each batch of all groups of a list, after the first `begun`."""
    frames = shown.key_frames
    assert frames is not None

    def predict(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = box_logits(network, params, batch, whole=config.boxes.whole, extend=extend)
        sums = box_sums(logits, batch["target"], batch["present"])
        return jax.nn.sigmoid(logits), sums["error"]

    mesh = data_mesh()
    with jax.set_mesh(mesh):
        step, placed = jit_batch(predict, params, mesh), place_params(params, mesh)
        for indices, sampler in groups:
            count = -(-len(indices) // batch_size)
            if begun < count:
                batches = run_batches(
                    step,
                    placed,
                    pick_videos(shown, indices),
                    sampler=sampler,
                    batch_size=batch_size,
                    mesh=mesh,
                    threads=config.data.threads or None,
                    bad=bad,
                    start_batch=begun,
                )
                with closing(batches):
                    for ids, values in batches:
                        numbers = np.array(indices)[ids]
                        yield _to_rows(numbers, *values, counts=frames.counts[numbers])
            begun = max(0, begun - count)


def _to_rows(
    numbers: np.ndarray, probabilities: np.ndarray, errors: np.ndarray, *, counts: np.ndarray
) -> BoxProbabilities:
    """Return the rows of some key frames. probabilities: [n, M, K]. counts: of their boxes."""
    rows = np.maximum(counts, 1)
    boxes = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows)
    return BoxProbabilities(
        frames=np.repeat(numbers, rows),
        boxes=np.where(np.repeat(counts, rows) > 0, boxes, -1),
        probabilities=probabilities[np.arange(probabilities.shape[1]) < rows[:, None]],
        errors=np.where(boxes == 0, np.repeat(errors, rows), 0),
    )
