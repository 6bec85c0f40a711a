"""The lines printed before the first step."""

from videomae_jax.config import load_config
from videomae_jax.training.banner import length_line
from videomae_jax.training.optim import make_schedule


def test_the_length_counts_videos_in_epochs_and_clips_in_views():
    config = load_config("pretrain:b,k400,v2")
    assert (config.batch_size, config.repeats) == (1024, 4)
    line = length_line(config, make_schedule(config, examples=240_000), 240_000, unit="videos")
    assert line.endswith("299.5 epochs of 240,000 videos, 1,198.1 views of each")
