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

from videomae_jax.config import feed_keys, machine_keys, model_keys, parse_choices, training_keys
from videomae_jax.errors import UserError
from videomae_jax.models.vit import SIZES

# batch_size counts videos. Each video gives `repeats` clips per step; the learning rate does not
# depend on them.
DATA = {
    "k400": dict(epochs=75),
    "ssv2": dict(epochs=30, sampling="sparse", flip=False, views="2x3"),
    "ucf101": dict(
        batch_size=128, epochs=100, layer_decay=0.7, drop_path=0.2, head_dropout=0.5, min_lr=1e-5
    ),
    # No released script: from the paper's appendix, which gives no dropout for the head.
    "hmdb51": dict(
        batch_size=128,
        base_lr=1e-3,
        epochs=50,
        stride=2,
        layer_decay=0.7,
        drop_path=0.2,
        views="10x3",
    ),
    # Our own: a batch that fits one machine, and a tenth of the videos held out.
    "custom": dict(batch_size=16, epochs=50, holdout=0.1),
}
# Sizes with released scripts of their own; the others use those of ViT-B for the same data.
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
            # Shown at the start of a run and in reports.
            name=f"VideoMAE fine-tuning, ViT-{size}, {data}",
            task="classify",  # what is learned; a name of tasks/__init__.py
            seed=0,  # of the weights, the data order, the masks and the augmentation
            # Checkpoint to load the encoder and its geometry from; "" is random weights.
            init_from="",
            # Checkpoint of a trained model to learn from instead of the labels; "" is none.
            teacher="",
            teacher_model=dict(),  # its model, which `videomae train` reads from the checkpoint
            model=dict(
                encoder=dataclasses.asdict(model.encoder),
                **model_keys(model.patch),
                classes=0,  # 0 takes the number from the training data
                # Sigmoid loss and mAP; a training list with several labels a video sets it.
                multi_label=False,
            ),
            clip=dict(
                frames=16,  # of a clip, a multiple of those of a patch
                sampling=values["sampling"],  # dense: a window; sparse: the whole video
                stride=values["stride"],  # of dense sampling
                height=224,  # of the network's input, in pixels; a multiple of that of a patch
                width=224,  # of the network's input, in pixels; a multiple of that of a patch
                # Maximum size of training clips before the crop on the device; 0 chooses it for
                # the clip and the videos, 256 x 340 for 224 x 224.
                source_height=0,
                source_width=0,  # the same for the width
            ),
            augment=dict(
                operations=4,  # of RandAugment, each applied with probability 0.5; 0 is off
                magnitude=7.0,  # of the operations, of 10
                deviation=0.5,  # of the magnitude
                min_area=0.08,  # of random crops, as a fraction of the image
                flip=values["flip"],  # left-right; not for classes that differ by direction
                erase=0.25,  # probability of random erasing
                mixup=0.8,  # of the Beta distribution of the mixing fraction; 0 is off
                cutmix=1.0,  # of the Beta distribution of the area that is pasted; 0 is off
                switch=0.5,  # probability of cutmix, else mixup
                # Clips that are mixed with each other, with the same fraction. More than `repeats`,
                # which are clips of one video. The released code mixes the batch of a device.
                group=4,
            ),
            label_smoothing=0.1,  # share of a label that is spread over all classes
            drop_path=values["drop_path"],  # of the last block; falls linearly to 0 at the first
            head_dropout=values["head_dropout"],  # of the features, before the head
            # Factor on the learning rate, per block towards the input; 1 is off, 0 freezes the
            # patch embedding and the blocks.
            layer_decay=values["layer_decay"],
            ema_decay=0.0,  # of averaged weights, which are evaluated too; 0 is off
            data=dict(
                train="",  # manifest, folder, packed records, tfds:NAME[@SPLIT] or synthetic
                eval="",  # as train; "" holds out the fraction `holdout` of train
                holdout=values["holdout"],  # fraction of the videos of train
                **feed_keys(),
                class_names=(),  # of labels 0, 1, ...; () takes them from train
            ),
            views=values["views"],  # clips x crops per test video
            batch_size=values["batch_size"],  # videos per optimizer step, over all devices
            repeats=values["repeats"],  # clips of each video per step, from one decode
            accumulation=1,  # microbatches per step, computed one after another
            **training_keys(
                epochs=values["epochs"],
                warmup_epochs=5,
                base_lr=values["base_lr"],
                min_lr=values["min_lr"],
                b2=0.999,
                weight_decay=0.05,
            ),
            **machine_keys(),
        )
    )
