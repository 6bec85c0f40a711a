"""Action detection: which actions each person does at a moment of a video, given their boxes.

    videomae train --config=detect:SIZE,DATA --workdir=DIR \\
        --config.data.train=ANNOTATIONS --config.data.videos=FOLDER \\
        --config.init_from=CHECKPOINT [--config.KEY=VALUE ...]

SIZE: tiny, s, b, l, h. DATA: ava, from a pre-trained checkpoint; ava_ft, from one that was
fine-tuned on Kinetics; custom, your own videos and classes. ANNOTATIONS: an AVA csv or one with a
header, see docs/detection.md. Without init_from: from scratch. With it, the encoder's size, the
patch and the clips' frames, stride and size are those of the checkpoint, unless overridden. The
numbers are those of the released scripts, except where a comment says otherwise.
"""

import dataclasses

from ml_collections import ConfigDict

from videomae_jax.config import feed_keys, machine_keys, model_keys, parse_choices, training_keys
from videomae_jax.data.ava_classes import AVA_CLASSES
from videomae_jax.models.vit import SIZES

# What AVA models were trained with. A run that starts from a checkpoint with other statistics keeps
# these.
AVA = dict(
    mean=tuple(value / 255 for value in (122.7717, 115.9465, 102.9801)), std=(57.375 / 255,) * 3
)
DATA = {
    "ava": dict(class_names=AVA_CLASSES),
    "ava_ft": dict(base_lr=5e-4, class_names=AVA_CLASSES),
    # Our own: a batch that fits one machine, ImageNet's statistics, boxes aligned with the map,
    # and a tenth of the videos held out.
    "custom": dict(batch_size=16, base_lr=1e-3, epochs=50, holdout=0.1, aligned=True),
}
SIZE = {
    ("s", "ava"): dict(base_lr=1e-3, layer_decay=0.6),
    ("s", "ava_ft"): dict(layer_decay=0.6),
    ("l", "ava_ft"): dict(layer_decay=0.8, epochs=20),
    ("h", "ava"): dict(base_lr=5e-4, layer_decay=0.8, epochs=20),
    ("h", "ava_ft"): dict(layer_decay=0.8, epochs=20),
}


def get_config(arguments: str = "b,ava") -> ConfigDict:
    """Return the recipe for "SIZE,DATA", with every key."""
    size, data = parse_choices(arguments, size=("b", "s", "l", "h", "tiny"), data=tuple(DATA))
    model = SIZES[size]
    values = dict(
        batch_size=128,
        base_lr=2.5e-4,
        epochs=30,
        layer_decay=0.75,
        holdout=0.0,
        aligned=False,
        class_names=(),
    )
    values |= DATA[data] | SIZE.get((size, data), {})
    statistics = {} if data == "custom" else AVA

    return ConfigDict(
        dict(
            # Shown at the start of a run and in reports.
            name=f"VideoMAE action detection, ViT-{size}, {data}",
            task="detect",  # what is learned; a name of tasks/__init__.py
            seed=0,  # of the weights, the data order, the masks and the augmentation
            # Checkpoint to load the encoder and its geometry from; "" is random weights.
            init_from="",
            model=dict(
                encoder=dataclasses.asdict(model.encoder),
                **model_keys(model.patch, **statistics),
                classes=len(values["class_names"]),  # 0 takes the number from the class list
            ),
            clip=dict(
                frames=16,  # of a clip, a multiple of those of a patch
                stride=4,  # from one frame of a clip to the next
                rate=25.0,  # of frames a second, by which the stride counts
                height=224,  # of the crop of training; evaluation takes the whole image
                width=224,  # of the crop of training
                short_side=0,  # to which images are resized before the crop; 0 is 8/7 of height
            ),
            roi=dict(
                size=7,  # cells along each side of a box
                ratio=0,  # samples along each side of a cell; 0 takes as many as the box needs
                aligned=values["aligned"],  # False reads half a map cell to the bottom right
            ),
            boxes=dict(
                max=32,  # of a training clip; if there are more, a random choice of them
                # Largest moves of the sides of a box in training, of its width and height: out
                # and in along x, out and in along y.
                jitter=(0.2, 0.1, 0.1, 0.05),
                extend=(0.1, 0.05),  # of the width and height of detected boxes
                min_score=0.8,  # of a detected person
                whole=False,  # take the whole image instead of every box
            ),
            augment=dict(
                flip=True,  # left-right; not for classes that differ by direction
                hue=10,  # largest change, of 180 as in OpenCV
                saturation=26,  # largest change, of 255
                value=26,  # largest change, of 255
            ),
            drop_path=0.2,  # of the last block; falls linearly to 0 at the first
            # Factor on the learning rate, per block towards the input; 1 is off, 0 freezes the
            # patch embedding and the blocks.
            layer_decay=values["layer_decay"],
            ema_decay=0.0,  # of averaged weights, which are evaluated too; 0 is off
            data=dict(
                train="",  # annotations, or packed records of them
                eval="",  # as train; "" holds out the fraction `holdout` of the videos of train
                holdout=values["holdout"],  # fraction of the videos of train
                videos="",  # folder of the videos that annotations name by id
                # Second of the annotations at which the video files begin; auto finds it.
                start="auto",
                classes="",  # file with the names and ids of the classes
                evaluated="",  # file with the classes that are scored; "" is all, of AVA 60
                excluded="",  # file with key frames to leave out of both
                **feed_keys(),
                # Of ids 1, 2, ..., unless `classes` is given; () takes them from train.
                class_names=values["class_names"],
            ),
            batch_size=values["batch_size"],  # key frames per optimizer step, over all devices
            repeats=1,  # clips of each key frame per step, from one decode
            accumulation=1,  # microbatches per step, computed one after another
            **training_keys(
                epochs=values["epochs"],
                warmup_epochs=5,
                base_lr=values["base_lr"],
                min_lr=1e-6,
                b2=0.999,
                weight_decay=0.05,
            ),
            **machine_keys(),
        )
    )
