"""MoCo v3 beside VideoMAE: contrastive pre-training. A reconstruction.

    videomae train --config=contrast:SIZE,DATA --workdir=DIR \\
        --config.data.train=VIDEOS [--config.KEY=VALUE ...]

SIZE: tiny, s, b, l, h. DATA: k400, ssv2, ucf101, hmdb51, custom. VIDEOS: a manifest or a folder.

The authors' video recipe was never released. These are the numbers of MoCo v3 for images, with
VideoMAE's clips; a comment says which are ours.
"""

import dataclasses

from ml_collections import ConfigDict

from videomae_jax.config import feed_keys, machine_keys, model_keys, parse_choices, training_keys
from videomae_jax.models.vit import SIZES

DATA = {
    "k400": dict(),
    "ssv2": dict(stride=2, flip=False),
    # Ours: as many epochs as VideoMAE, and as long a part of them to warm up.
    "ucf101": dict(epochs=3200, warmup_epochs=400),
    "hmdb51": dict(epochs=4800, warmup_epochs=600, stride=2),
    # Our own: a batch that fits one machine, smaller heads, and a twentieth of the videos held out.
    "custom": dict(
        batch_size=64, warmup_epochs=30, hidden=1024, dim=128, min_area=0.2, holdout=0.05
    ),
}


def get_config(arguments: str = "b,k400") -> ConfigDict:
    """Return the recipe for "SIZE,DATA", with every key."""
    size, data = parse_choices(arguments, size=("b", "s", "l", "h", "tiny"), data=tuple(DATA))
    model = SIZES[size]
    values = dict(
        batch_size=1024,
        epochs=300,
        warmup_epochs=40,
        stride=4,
        hidden=4096,
        dim=256,
        min_area=0.08,
        flip=True,
        holdout=0.0,
    )
    values |= DATA[data]

    return ConfigDict(
        dict(
            # Shown at the start of a run and in reports.
            name=f"MoCo v3 on video, ViT-{size}, {data}: "
            "a reconstruction, the authors' video recipe was never released",
            task="contrast",  # what is learned; a name of tasks/__init__.py
            seed=0,  # of the weights, the data order, the masks and the augmentation
            init_from="",  # checkpoint to load the encoder and its geometry from; "" is random
            model=dict(
                encoder=dataclasses.asdict(model.encoder),
                **model_keys(model.patch),
                head=dict(
                    hidden=values["hidden"],  # width of the projector and the predictor
                    dim=values["dim"],  # width of the projections, which are compared
                ),
            ),
            clip=dict(
                frames=16,  # of a clip, a multiple of those of a patch
                stride=values["stride"],  # frames of the video from one frame of a clip to the next
                height=224,  # of the network's input, in pixels; a multiple of that of a patch
                width=224,  # of the network's input, in pixels; a multiple of that of a patch
                # Maximum size of training clips before the crop on the device; 0 chooses it for
                # the clip and the videos, 256 x 340 for 224 x 224.
                source_height=0,
                source_width=0,  # the same for the width
            ),
            # One draw for all frames of a clip.
            augment=dict(
                min_area=values["min_area"],  # of random crops, as a fraction of the image
                flip=values["flip"],  # left-right; not for classes that differ by direction
                jitter=0.8,  # probability of changing the colours
                # Largest change of brightness, contrast and saturation, and of hue in turns.
                colours=(0.4, 0.4, 0.2, 0.1),
                grey=0.2,  # probability
                blur=(1.0, 0.1),  # probabilities, of the first and the second view
                solarize=(0.0, 0.2),  # probabilities, of the first and the second view
            ),
            temperature=0.2,  # by which cosines are divided in the loss
            freeze_patches=True,  # do not train the random patch embedding
            knn=dict(
                k=0,  # neighbours of the kNN accuracy at each evaluation; needs labels; 0 is off
                videos=2000,  # at most this many training videos as neighbours
            ),
            layer_decay=1.0,  # one learning rate for all layers
            # Of the averaged weights that make the keys, at first; rises to 1 as a half cosine.
            ema_decay=0.99,
            data=dict(
                train="",  # manifest, folder, packed records, tfds:NAME[@SPLIT] or synthetic
                eval="",  # as train; "" holds out the fraction `holdout` of train
                holdout=values["holdout"],  # fraction of the videos of train
                **feed_keys(),
            ),
            batch_size=values["batch_size"],  # videos per optimizer step, over all devices
            repeats=2,  # the two views of a video, from one decode
            accumulation=1,  # 1: the loss compares all videos of a step; `chunks` saves memory
            chunks=1,  # parts of the batch, encoded one after another
            **training_keys(
                epochs=values["epochs"],
                warmup_epochs=values["warmup_epochs"],
                base_lr=1.5e-4,
                min_lr=0.0,
                b2=0.999,
                weight_decay=0.1,  # the released code also decays norms and biases
            ),
            **machine_keys(),
        )
    )
