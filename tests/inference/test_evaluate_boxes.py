"""Scores of boxes that are saved and resumed."""

from types import SimpleNamespace

import numpy as np
import pytest
from videos import write_video

from videomae_jax.data.key_frames import KeyFrames
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.inference.evaluate import write_confusion
from videomae_jax.inference.evaluate_boxes import BoxClassScore, evaluate_boxes, write_classes
from videomae_jax.inference.network import build_network


def test_a_video_that_can_be_read_since_does_not_mix_up_the_boxes(detector, tmp_path):
    """It changes the order of the batches, which go by the size of the videos."""
    _, params, config = detector
    paths = (f"{tmp_path}/wide.mp4", *[write_video(tmp_path / "a.mp4", count=60)] * 9)
    count = len(paths)
    frames = KeyFrames(
        seconds=np.arange(count) / 9,
        names=("wide", *["a"] * 9),
        stamps=np.arange(count) / 9,
        offsets=np.arange(count + 1),
        boxes=np.tile(np.array([0.2, 0.1, 0.6, 0.9], np.float32), (count, 1)),
        targets=np.eye(3, dtype=bool)[np.arange(count) % 3],
        scores=np.ones(count, np.float32),
        persons=np.full(count, -1),
    )
    videos = Videos(paths, None, ("jump", "roll", "walk"), "list", key_frames=frames)

    def evaluate(**options):
        network = build_network(config)
        return evaluate_boxes(
            network, params, config, videos, source="x", out=tmp_path / "out", **options
        )

    (tmp_path / "wide.mp4").write_text("not a video")
    assert evaluate(stopped=lambda: True) is None
    write_video(tmp_path / "wide.mp4", count=60, width=256)
    with pytest.raises(UserError, match="holds results of video-sizes"):
        evaluate()


@pytest.mark.parametrize("name", ["classes.csv", "classes.png"])
def test_scores_that_cannot_be_written_are_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    scores = SimpleNamespace(
        classes=[BoxClassScore("jump", 0, 0.5, 3, 9)], map=0.5, upper_bound=False
    )
    with pytest.raises(UserError, match=f"cannot write .*{name}: Is a directory"):
        write_classes(tmp_path, scores)


@pytest.mark.parametrize("name", ["confusion.csv", "confusion.png"])
def test_a_confusion_matrix_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write .*{name}: Is a directory"):
        write_confusion(tmp_path, np.eye(2), ("jump", "roll"))
