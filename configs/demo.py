"""The demo: a tiny VideoMAE on the motion-capture clips of data/, minutes on two CPU cores.

videomae train --config=demo --workdir=DIR [--config.data.train=VIDEOS]
"""

from pathlib import Path

from ml_collections import ConfigDict

from videomae_jax.config import load_recipe

CLIPS = Path(__file__).parent.parent / "data/mocap_studio"  # only in a checkout


def get_config() -> ConfigDict:
    """Return the pre-training recipe, reduced until it learns something in six minutes."""
    config = load_recipe("pretrain", "tiny,custom")
    config.name = "VideoMAE demo"
    if CLIPS.is_dir():
        config.data.train, config.data.eval = str(CLIPS / "train.csv"), str(CLIPS / "val.csv")

    config.data.memory_gb = 4.0  # holds all clips, 1 GB

    # 72 tokens: a step costs 30 ms.
    config.clip.update(frames=8, stride=2, height=48, width=48)
    config.clip.update(source_height=112, source_width=112)  # the size of the videos
    config.model.patch = (4, 8, 8)
    # An image has 6 x 6 patches here, not 14 x 14. With fewer visible ones, too little of the
    # image is known to predict the rest.
    config.mask.ratio = 0.5
    # Rendered backgrounds are flat, and normalizing a flat patch amplifies its compression noise.
    config.normalized_targets = False

    # Many small steps: learning where the neighbours of a token are takes most of the time.
    config.batch_size = 8
    config.steps, config.warmup_steps = 7000, 200
    config.base_lr, config.lr, config.min_lr = 0.0, 2e-3, 1e-5
    config.log_every, config.eval_every, config.save_every = 200, 1000, 1000
    return config
