"""VideoMAE pre-training.

    videomae train --config=pretrain:SIZE,DATA[,RECIPE] --workdir=DIR \\
        --config.data.train=VIDEOS [--config.KEY=VALUE ...]

SIZE: tiny, s, b, l, h, g. DATA: k400, ssv2, ucf101, hmdb51, custom. RECIPE: v1 (default), v2,
cross (v1 with a cross-attention decoder, 2401.14391: cheaper, and not the paper's), amd (s or b, on
k400, ssv2 or custom: also learns the features of a larger model, --config.teacher=CHECKPOINT).
VIDEOS: a manifest or a folder. The numbers are those of the released scripts, except where
a comment says otherwise.
"""

import dataclasses

from ml_collections import ConfigDict

from videomae_jax.config import feed_keys, machine_keys, model_keys, parse_choices, training_keys
from videomae_jax.errors import UserError
from videomae_jax.models.vit import SIZES

DATA = {
    "k400": dict(epochs=1600),
    "ssv2": dict(epochs=2400, batch_size=2048, stride=2),
    "ucf101": dict(epochs=3200, batch_size=192, base_lr=3e-4, mask_ratio=0.75),
    # No released script: from the paper's appendix.
    "hmdb51": dict(epochs=4800, batch_size=192, base_lr=3e-4, mask_ratio=0.75, stride=2),
    # Our own: a batch that fits one machine, and a twentieth of the videos held out.
    "custom": dict(epochs=800, batch_size=64, holdout=0.05),
}
K400_SIZE = {
    "s": dict(batch_size=1024),
    "b": dict(batch_size=2048),
    "l": dict(batch_size=512, decoder_depth=12),
    "h": dict(batch_size=1024, decoder_depth=12),
}
# Dual masking. The released scripts use batches of 1024 to 2048 videos and 200 to 300 epochs, with
# four clips of each video: their "1200 epochs" are 300 passes over the videos.
V2 = dict(epochs=300, batch_size=1024, repeats=4, base_lr=1e-3, decoder_ratio=0.5, decoder_depth=4)
V2_SIZE = {
    "l": dict(decoder_width=512, decoder_heads=8),
    "h": dict(decoder_width=512, decoder_heads=8),
    "g": dict(base_lr=6e-4, clip_norm=0.02),
}
# 2311.03149, released for these. A batch is 16 videos on each of 32 GPUs, with four clips of each
# video: the "800 epochs" are 200 passes over the videos. Its teachers are VideoMAE's own ViT-L.
AMD_SIZES, AMD_DATA = ("s", "b", "tiny"), ("k400", "ssv2", "custom")  # tiny and custom are ours
AMD = dict(
    epochs=200,
    warmup_epochs=10,
    batch_size=512,
    repeats=4,
    base_lr=1.2e-3,
    clip_norm=0.02,
    decoder_depth=4,
)


def get_config(arguments: str = "b,k400") -> ConfigDict:
    """Return the recipe for "SIZE,DATA" or "SIZE,DATA,RECIPE", with every key."""
    size, data, recipe = parse_choices(
        arguments, size=tuple(SIZES), data=tuple(DATA), recipe=("v1", "v2", "cross", "amd")
    )
    if recipe == "amd" and (size not in AMD_SIZES or data not in AMD_DATA):
        raise UserError(
            f"recipe 'amd' has no numbers for {size},{data}: use {', '.join(AMD_SIZES)} with "
            f"{', '.join(AMD_DATA)}"
        )
    model = SIZES[size]
    values = dict(
        batch_size=1024,
        repeats=1,
        base_lr=1.5e-4,
        warmup_epochs=40,
        stride=4,
        mask_ratio=0.9,
        decoder_ratio=0.0,
        clip_norm=0.0,
        holdout=0.0,
        decoder_width=model.decoder.width,
        decoder_heads=model.decoder.heads,
        decoder_depth=model.decoder.depth,
        decoder_attention="cross" if recipe == "cross" else "self",
    )
    values |= DATA[data]
    values |= K400_SIZE.get(size, {}) if data == "k400" else {}
    values |= V2 | V2_SIZE.get(size, {}) if recipe == "v2" else {}
    values |= AMD if recipe == "amd" else {}
    if data == "custom":
        values["batch_size"] = DATA[data]["batch_size"]

    task = "amd" if recipe == "amd" else "pretrain"
    method = {"v2": "VideoMAE V2", "amd": "AMD"}.get(recipe, "VideoMAE V1")
    name = f"{method} pre-training, ViT-{size}, {data}"
    if recipe == "cross":
        name += ", cross-attention decoder (not the paper's)"

    return ConfigDict(
        dict(
            # Shown at the start of a run and in reports.
            name=name,
            task=task,  # what is learned; a name of tasks/__init__.py
            seed=0,  # of the weights, the data order, the masks and the augmentation
            init_from="",  # checkpoint to load the encoder from; "" is random weights
            teacher="",  # checkpoint of a trained model to learn features from, in the recipe amd
            teacher_model=dict(),  # its model, which `videomae train` reads from the checkpoint
            model=dict(
                encoder=dataclasses.asdict(model.encoder),
                decoder=dict(
                    width=values["decoder_width"],  # of a token
                    depth=values["decoder_depth"],  # blocks
                    heads=values["decoder_heads"],  # of the attention; divides the width
                    mlp_width=4 * values["decoder_width"],  # of the hidden layer of a block's MLP
                ),
                # self, or cross: hidden tokens attend only to the visible ones.
                decoder_attention=values["decoder_attention"],
                **model_keys(model.patch),
            ),
            clip=dict(
                frames=16,  # of a clip, a multiple of those of a patch
                stride=values["stride"],  # frames of the video from one frame of a clip to the next
                height=224,  # of the network's input, in pixels; a multiple of that of a patch
                width=224,  # of the network's input, in pixels; a multiple of that of a patch
                source_height=256,  # most of a training clip before an accelerator resizes it
                source_width=256,  # the same for the width
            ),
            mask=dict(
                kind="tube",  # tube, random, frame or running_cell
                ratio=values["mask_ratio"],  # fraction of the patches that is hidden
                decoder_ratio=values["decoder_ratio"],  # fraction the decoder skips; 0 skips none
                # Fraction hidden from the teacher, who sees all that the student sees, and more.
                **({"teacher_ratio": 0.75} if recipe == "amd" else {}),
            ),
            normalized_targets=True,  # predict patches less their mean, over their deviation
            knn=dict(
                k=0,  # neighbours of the kNN accuracy at each evaluation; needs labels; 0 is off
                videos=2000,  # at most this many training videos as neighbours
            ),
            layer_decay=1.0,  # factor on the learning rate, per block towards the input; 1 is off
            ema_decay=0.0,  # of averaged weights, which are evaluated too; 0 is off
            data=dict(
                train="",  # manifest, folder, packed records, tfds:NAME[@SPLIT] or synthetic
                eval="",  # as train; "" holds out the fraction `holdout` of train
                holdout=values["holdout"],  # fraction of the videos of train
                **feed_keys(),
            ),
            batch_size=values["batch_size"],  # videos per optimizer step, over all devices
            # Clips of each video per step, from one decode. The learning rate and the number of
            # steps in an epoch do not depend on them.
            repeats=values["repeats"],
            accumulation=1,  # microbatches per step, computed one after another
            **training_keys(
                epochs=values["epochs"],
                warmup_epochs=values["warmup_epochs"],
                base_lr=values["base_lr"],
                min_lr=1e-5,
                b2=0.95,
                weight_decay=0.05,
                clip_norm=values["clip_norm"],
            ),
            **machine_keys(),
        )
    )
