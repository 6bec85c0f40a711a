"""The demo: a tiny VideoMAE, minutes on two CPU cores. `videomae demo` runs all of it.

    videomae train --config=demo[:STAGE] --workdir=DIR [--config.data.train=VIDEOS]

STAGE: pretrain (default), or classify, with --config.init_from=CHECKPOINT after pre-training.
VIDEOS: a folder or a list; by default the motion-capture clips of data/ of a checkout.
"""

from pathlib import Path

from ml_collections import ConfigDict

from videomae_jax.config import load_recipe, parse_choices

CLIPS = Path(__file__).parent.parent / "data/mocap_studio"  # only in a checkout


def get_config(arguments: str = "pretrain") -> ConfigDict:
    """Return the recipe of a stage, reduced until it learns something in minutes."""
    (stage,) = parse_choices(arguments, stage=("pretrain", "classify"))
    config = load_recipe("finetune" if stage == "classify" else "pretrain", "tiny,custom")
    config.name = f"VideoMAE demo, {stage}"
    if CLIPS.is_dir():
        config.data.train, config.data.eval = str(CLIPS / "train.csv"), str(CLIPS / "val.csv")
    config.data.memory_gb = 4.0  # holds all clips, 1 GB
    # The size of the videos.
    config.clip.update(frames=8, height=48, width=48, source_height=112, source_width=112)
    # 144 tokens. With patches of 4 pixels a step takes twice as long, and after the same minutes
    # the classifier is at chance.
    config.model.patch = (2, 8, 8)
    # With positions that tell the time, the row and the column apart, the model finds the same
    # place at other times within minutes.
    config.model.positions = "3d"
    config.base_lr, config.min_lr = 0.0, 1e-5
    # In as many minutes as with AdamW, limbs are predicted and not only the place of the body, and
    # the classifiers are right twice as often.
    config.optimizer.update(kind="muon", b1=0.95, b2=0.99)
    if stage == "classify":
        return classify(config)
    return pretrain(config)


def pretrain(config: ConfigDict) -> ConfigDict:
    """Return the settings of pre-training."""
    config.clip.stride = 1
    # Tubes of 75 % would need hours: a limb that is hidden at all times must be guessed.
    config.mask.update(kind="random", ratio=0.75)
    # Rendered backgrounds are flat, and normalizing a flat patch amplifies its compression noise.
    config.normalized_targets = False
    config.batch_size, config.lr = 16, 4e-3
    config.steps, config.warmup_steps = 1800, 100
    config.log_every, config.eval_every, config.save_every = 100, 600, 600
    return config


def classify(config: ConfigDict) -> ConfigDict:
    """Return the settings of both classifiers: crops and flips only, for a short run."""
    config.clip.sampling = "sparse"
    config.augment.update(operations=0, erase=0.0, mixup=0.0, cutmix=0.0, min_area=0.5)
    config.repeats, config.batch_size, config.lr = 1, 16, 4e-3
    config.layer_decay = 1.0  # after a short pre-training, and without one, lower layers learn too
    config.steps, config.warmup_steps = 280, 28
    config.log_every, config.eval_every, config.save_every = 40, 280, 280
    return config
