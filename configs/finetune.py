"""VideoMAE fine-tuning: learn the classes of a labelled data set.

    videomae train --config=finetune:SIZE,DATA[,START] --workdir=DIR \\
        --config.data.train=VIDEOS --config.init_from=CHECKPOINT [--config.KEY=VALUE ...]

SIZE: tiny, s, b, l, h. DATA: k400, ssv2, ucf101, hmdb51, custom. START: full (default), the
longest pre-training, or e800, ViT-B pre-trained for 800 epochs on k400 or ssv2. VIDEOS: a
manifest or a folder, with labels. Without init_from: from scratch. With it, the encoder's size,
the patch, the pixel statistics and the clips' frames, stride and size are those of the checkpoint,
unless overridden. The numbers are those of the released scripts, except where a comment says
otherwise.
"""

import dataclasses

from ml_collections import ConfigDict

from videomae_jax.config import feed_keys, machine_keys, parse_choices
from videomae_jax.errors import UserError
from videomae_jax.models.vit import SIZES

# batch_size counts videos: each gives `repeats` clips to a step, and the rate ignores them.
DATA = {
    "k400": dict(epochs=75),
    "ssv2": dict(epochs=30, sampling="sparse", flip=False, views="2x3"),
    "ucf101": dict(
        batch_size=128, epochs=100, layer_decay=0.7, drop_path=0.2, head_dropout=0.5, min_lr=1e-5
    ),
    # Unverified: the paper's appendix, from memory; it gives no dropout of the head.
    "hmdb51": dict(
        batch_size=128,
        base_lr=1e-3,
        epochs=50,
        stride=2,
        layer_decay=0.7,
        drop_path=0.2,
        views="10x3",
    ),
    # Ours: a batch that fits one machine, a tenth of the videos held out.
    "custom": dict(batch_size=16, epochs=50, holdout=0.1),
}
# Sizes that have scripts of their own; the others take those of ViT-B on the same data.
SIZE = {
    ("s", "k400"): dict(epochs=150),
    ("l", "k400"): dict(batch_size=128, base_lr=2e-3, epochs=35),
    ("h", "k400"): dict(
        batch_size=512, base_lr=1e-3, epochs=50, drop_path=0.2, head_dropout=0.5, min_lr=1e-5
    ),
    ("s", "ssv2"): dict(base_lr=1e-3, epochs=40, layer_decay=0.7),
}
E800 = {
    ("b", "k400"): dict(batch_size=512, repeats=1, base_lr=1e-3, epochs=100),
    ("b", "ssv2"): dict(batch_size=512, repeats=1, base_lr=5e-4, epochs=50),
}


def get_config(arguments: str = "b,k400") -> ConfigDict:
    """Return the recipe for "SIZE,DATA" or "SIZE,DATA,START", with every key."""
    size, data, start = parse_choices(
        arguments, size=("b", "s", "l", "h", "tiny"), data=tuple(DATA), start=("full", "e800")
    )
    if start == "e800" and (size, data) not in E800:
        raise UserError(f"start 'e800' has no recipe for {size},{data}: use b,k400 or b,ssv2")
    model = SIZES[size]
    values = dict(
        batch_size=384,
        repeats=2,
        base_lr=5e-4,
        min_lr=1e-6,
        layer_decay=0.75,
        drop_path=0.1,
        head_dropout=0.0,
        sampling="dense",
        stride=4,
        flip=True,
        views="5x3",
        holdout=0.0,
    )
    values |= DATA[data] | SIZE.get((size, data), {})
    values |= E800[size, data] if start == "e800" else {}

    return ConfigDict(
        dict(
            name=f"VideoMAE fine-tuning, ViT-{size}, {data}",
            task="classify",
            seed=0,
            init_from="",  # checkpoint of the encoder and its geometry; "" starts from scratch
            model=dict(
                encoder=dataclasses.asdict(model.encoder),
                patch=(2, model.patch, model.patch),
                mean=(0.485, 0.456, 0.406),  # of ImageNet; one number per channel
                std=(0.229, 0.224, 0.225),
                position_grid=(),  # grid to interpolate positions from; () recomputes them
                classes=0,  # 0 counts those of the training data
            ),
            clip=dict(
                frames=16,
                sampling=values["sampling"],  # dense: a window of the video; sparse: all of it
                stride=values["stride"],  # of dense clips
                height=224,
                width=224,
                # Of training clips at most, on their way to the device, where they are cropped.
                source_height=256,
                source_width=340,
            ),
            augment=dict(
                operations=4,  # of RandAugment, each applied to every second clip; 0 for none
                magnitude=7.0,  # of 10
                deviation=0.5,  # of the magnitude
                min_area=0.08,  # of random crops, a fraction of the image
                flip=values["flip"],  # left and right; not where direction is the class
                erase=0.25,  # chance of random erasing
                mixup=0.8,  # of the Beta distribution of mixing weights; 0 for none
                cutmix=1.0,
                switch=0.5,  # chance of cutmix, else mixup
                # Clips mixed with each other, by one share. More than the repeats, which are
                # clips of one video; the released code mixes the batch of a device instead.
                group=4,
            ),
            label_smoothing=0.1,
            drop_path=values["drop_path"],  # of the last block; falls to 0 at the first
            head_dropout=values["head_dropout"],
            layer_decay=values["layer_decay"],  # of the rate, from each block to the one below
            ema_decay=0.0,  # of a moving average of the weights, evaluated too; 0 keeps none
            data=dict(
                train="",  # manifest, folder, packed records, tfds:NAME[@SPLIT] or synthetic
                eval="",  # likewise, or "" for a fraction `holdout` of train
                holdout=values["holdout"],
                **feed_keys(),
                class_names=(),  # of labels 0, 1, ...; () takes those of train
            ),
            views=values["views"],  # clips x crops of a test video
            batch_size=values["batch_size"],  # videos per optimizer step, over all devices
            repeats=values["repeats"],  # clips of each video in a step, from one decode
            accumulation=1,  # parts of a step's batch, computed one after the other
            epochs=values["epochs"],
            warmup_epochs=5,
            steps=0,  # if set, instead of epochs
            warmup_steps=0,  # with steps, instead of warmup_epochs
            base_lr=values["base_lr"],  # the rate is base_lr * batch_size / 256 ...
            lr=0.0,  # ... or lr as given; exactly one of the two is set
            min_lr=values["min_lr"],  # where the cosine ends; scaled like the rate above it
            optimizer=dict(
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.05,
                clip_norm=0.0,  # of the global gradient; 0 does not clip
            ),
            **machine_keys(),
        )
    )
