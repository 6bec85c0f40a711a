"""The lines printed before the first step."""

from pathlib import Path

from videomae_jax.config import load_config
from videomae_jax.data.annotations import read_key_frames
from videomae_jax.data.videos import Videos
from videomae_jax.training.banner import data_line, length_line
from videomae_jax.training.optim import make_schedule

SCENES = Path(__file__).parents[2] / "data/mocap_scenes"


def test_the_length_counts_videos_in_epochs_and_clips_in_views():
    config = load_config("pretrain:b,k400,v2")
    assert (config.batch_size, config.repeats) == (1024, 4)
    line = length_line(config, make_schedule(config, examples=240_000), 240_000, unit="videos")
    assert line.endswith("299.5 epochs of 240,000 videos, 1,198.1 views of each")


def test_key_frames_are_not_called_videos():
    scenes = read_key_frames(SCENES / "val.csv")
    assert data_line(scenes, scenes).startswith(
        f"150 key frames of {scenes.name}; held out: 150 key frames of {scenes.name}; AVA csv"
    )
    config = load_config("detect:tiny,custom", ["--config.epochs=20"])
    schedule = make_schedule(config, examples=150)
    line = length_line(config, schedule, 150, unit=scenes.unit)
    assert line.endswith("epochs of 150 key frames")
    videos = Videos(paths=("a", "b"), labels=None, class_names=None, name="list")
    assert data_line(videos, None) == "2 videos of list; none held out"
