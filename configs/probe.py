"""Probes: evaluate the frozen features of a pre-trained encoder.

    videomae train --config=probe:HEAD,SIZE,DATA --workdir=DIR \\
        --config.data.train=VIDEOS --config.init_from=CHECKPOINT [--config.KEY=VALUE ...]

HEAD: linear, on the mean token, or attentive, a learned query over all tokens. SIZE, DATA,
VIDEOS: as in finetune.py, with its clips. The other numbers are ours.
"""

from ml_collections import ConfigDict

from videomae_jax.config import load_recipe, parse_choices

DATA = {
    "k400": dict(epochs=20, batch_size=256),
    "ssv2": dict(epochs=20, batch_size=256),
    "ucf101": dict(epochs=50, batch_size=64),
    "hmdb51": dict(epochs=50, batch_size=64),
    "custom": dict(epochs=50, batch_size=16),
}


def get_config(arguments: str = "linear,b,k400") -> ConfigDict:
    """Return the recipe for "HEAD,SIZE,DATA": fine-tuning's data, clips and machine."""
    head, size, data = parse_choices(
        arguments,
        head=("linear", "attentive"),
        size=("b", "s", "l", "h", "tiny"),
        data=tuple(DATA),
    )
    config = load_recipe("finetune", f"{size},{data}")
    with config.unlocked():
        # So few weights need no regularization, and evaluation uses one clip of each video.
        for key in ("label_smoothing", "drop_path", "head_dropout", "views"):
            del config[key]
        del config.teacher, config.teacher_model
        min_area, flip = config.augment.min_area, config.augment.flip
        config.augment = ConfigDict(dict(min_area=min_area, flip=flip))
        config.model.head = head  # linear or attentive
        # Multiples of the learning rate, with one head for each. Mean tokens differ little between
        # clips and are not normalized, so the best rates are high.
        config.rates = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    config.name = f"VideoMAE {head} probe, ViT-{size}, {data}"
    config.task = "probe"
    config.update(DATA[data], repeats=1, layer_decay=1.0, warmup_epochs=0)
    config.base_lr, config.lr, config.min_lr = 0.0, 1e-3, 0.0
    config.optimizer.weight_decay = 0.0
    return config
