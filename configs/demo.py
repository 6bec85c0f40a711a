"""The demo: a tiny VideoMAE on the motion-capture clips of data/, minutes on two CPU cores.

videomae train --config=configs/demo.py --workdir=DIR [--config.data.train=VIDEOS]
"""

from pathlib import Path

from ml_collections import ConfigDict

from videomae_jax.config import CHECKOUT, load_config


def get_config() -> ConfigDict:
    """Return the pre-training recipe, shrunk."""
    config = load_config(f"{Path(__file__).with_name('pretrain.py')}:tiny,custom")
    config.name = "VideoMAE demo"
    config.data.train = str(CHECKOUT / "data/mocap_studio/train.csv")
    config.data.eval = str(CHECKOUT / "data/mocap_studio/val.csv")
    return config
