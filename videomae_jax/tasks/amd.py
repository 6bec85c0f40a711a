"""AMD (2311.03149): pre-training that also learns the features of a frozen, larger model.

It is the pre-training task with the two more losses of `models/amd.py`. The result is a
pre-trained model like any other: what starts from it leaves out the heads of the features.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from videomae_jax.config import flatten
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.models import flops
from videomae_jax.models.amd import (
    DEPTHS,
    FeatureHeads,
    add_errors,
    encode_and_decode,
    feature_errors,
    teacher_features,
)
from videomae_jax.models.encoder import VideoModel
from videomae_jax.models.mae import reconstruction_sums
from videomae_jax.models.masking import draw_mask
from videomae_jax.models.tokens import patchify
from videomae_jax.tasks import pretrain
from videomae_jax.tasks.build import Geometry, clip_geometry, encoder_fields, row_keys
from videomae_jax.tasks.pretrain import (
    EVAL_SEED,
    MASK,
    make_draw,
    training_clips,
    visible_tokens,
)
from videomae_jax.tasks.task import Task, Teacher
from videomae_jax.tasks.teacher import stored_params, teacher_config, teacher_line

GENERATOR_BLOCKS = 2  # of the teacher's shape, which predict what the student does not see
PATCHES = ("model.patch", "clip.frames", "clip.height", "clip.width")  # what makes those of a clip

build_model, eval_sampler = pretrain.build_model, pretrain.eval_sampler


def prepare(
    config: ConfigDict, train: Videos, held_out: Videos | None
) -> tuple[ConfigDict, Videos, Videos | None]:
    """Check the teacher, and the labels as `pretrain.prepare` does.

    Raises UserError if there is no teacher, or one that does not see the same patches.
    """
    if not config.teacher:
        raise UserError(
            "the recipe amd learns from a trained model: give --config.teacher=CHECKPOINT"
        )
    ours, theirs = flatten(config), flatten(config.teacher_model)
    other = [key for key in PATCHES if ours[key] != theirs[key]]
    if other:
        has, says = (", ".join(f"{key} {of[key]}" for key in other) for of in (theirs, ours))
        use = " ".join(f"--config.{key}={theirs[key]}".replace(" ", "") for key in other)
        raise UserError(
            f"the teacher {config.teacher} has {has} and the student {says}: both must see the "
            f"same patches, use {use}"
        )
    for name, of in (("teacher", theirs), ("student", ours)):
        if of["model.encoder.depth"] < 2:
            raise UserError(f"the {name} has 1 block, features after half of them need 2 or more")
    return pretrain.prepare(config, train, held_out)


def build_task(config: ConfigDict) -> Task:
    """Return the task of a locked config: that of `pretrain`, with a teacher and heads for it.

    Raises UserError if the teacher sees no more of a clip than the student.
    """
    task, model = pretrain.build_task(config), build_model(config)
    geometry, mask = clip_geometry(config.clip, model), config.mask
    grid, draw = geometry.grid, make_draw(mask, geometry.grid)
    visible, seen = _token_counts(mask, geometry)
    watched = VideoModel(**encoder_fields(teacher_config(config)))
    generator = dataclasses.replace(watched.encoder, depth=GENERATOR_BLOCKS)
    heads = FeatureHeads(generator, model.run, model.position_grid, model.positions)

    def draw_masks(key, ids):
        """Return the masks of the student, of what its decoder predicts, and of the teacher."""
        keys = row_keys(key, ids, stream=MASK)  # those of `draw`: the masks are nested
        return *draw(key, ids), draw_mask(keys, mask.kind, grid=grid, ratio=mask.teacher_ratio)

    @jax.jit
    def init(key):
        own, _, wider = draw_masks(jax.random.key(0), jnp.zeros([1], jnp.int32))
        tokens = [jnp.zeros([1, visible, model.encoder.width])] * len(DEPTHS)
        made = heads.init(jax.random.fold_in(key, 1), tokens, own, wider, grid)
        return {**task.init(key), "feature_heads": made["params"]}

    def clip_sums(params, teacher, video, key, ids):
        patches = patchify(video, model.patch)
        own, decoded, wider = draw_masks(key, ids)
        found: Any = model.apply(
            {"params": params}, patches, own, grid, decoded, method=encode_and_decode
        )
        prediction, tokens = found
        pixels = reconstruction_sums(
            prediction,
            patches,
            own,
            decoded=decoded,
            channels=len(model.mean),
            normalized=config.normalized_targets,
        )
        predicted: Any = heads.apply({"params": params["feature_heads"]}, tokens, own, wider, grid)
        wanted = teacher_features(watched, teacher["encoder"], patches, own, wider, grid)
        return add_errors(pixels, feature_errors(predicted, wanted))

    def train_sums(params, batch, key, *, teacher):
        video, ids = training_clips(config, batch)
        return jax.tree.map(jnp.sum, clip_sums(params, teacher, video, key, ids))

    def eval_sums(params, batch, *, teacher):
        return clip_sums(params, teacher, batch["video"], jax.random.key(EVAL_SEED), batch["id"])

    teacher = make_teacher(watched, geometry, seen=seen)
    head_flops = flops.feature_flops(model.encoder, generator, visible=visible, seen=seen)
    more = teacher.flops + 3 * head_flops
    return task._replace(
        init=init,
        train_sums=train_sums,
        eval_sums=eval_sums,
        summarize=summarize,
        teacher=teacher,
        train_flops=task.train_flops + more,
        summary={
            "recipe": "AMD (2311.03149): features of a teacher that sees more of a clip",
            **task.summary,
            "teacher": teacher_line(config, watched, geometry._replace(tokens=seen), teacher)
            + f"; ratio {mask.teacher_ratio}",
            "loss": f"{task.summary['loss']}, + direct features of {visible} tokens, + generated "
            f"features of {seen - visible}, at half and at full depth",
            "FLOPs": f"{task.summary['FLOPs']}, + {more / 1e9:.4g} G for the features",
        },
    )


def _token_counts(mask: ConfigDict, geometry: Geometry) -> tuple[int, int]:
    """Return how many tokens of a clip the student and the teacher see."""
    ratios = mask.ratio, mask.teacher_ratio
    visible, seen = (visible_tokens(mask.kind, geometry, ratio=ratio) for ratio in ratios)
    if seen <= visible:
        raise UserError(
            f"mask.teacher_ratio {mask.teacher_ratio} shows the teacher {seen} tokens, and "
            f"mask.ratio {mask.ratio} the student {visible}: use less, such as {mask.ratio / 2:g}"
        )
    return visible, seen


def make_teacher(model: VideoModel, geometry: Geometry, *, seen: int) -> Teacher:
    """Return the teacher of this model, of which only the encoder is kept.

    seen: the tokens of a clip that it sees.
    """
    encoder = model.build_encoder(final_norm=False)
    patches = model.blank_patches(geometry.grid)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), patches, geometry.grid))
    forward, _ = flops.finetune_flops(model.encoder, tokens=seen, values=geometry.values, classes=0)
    return Teacher(stored_params({"encoder": shapes["params"]}, model.run.dtype), forward)


def summarize(sums: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the mean loss and its terms, and vs_zero and r2 of the pixels.

    loss: pixels + direct + generated, see `models.amd.feature_errors`. The others are those of
    `pretrain.summarize`.
    """
    terms = {name: sums[name] / sums["count"] for name in ("pixels", "direct", "generated")}
    pixels = pretrain.summarize({**sums, "error": sums["pixels"]})
    loss = sums["error"] / sums["count"]
    return {"loss": loss, **terms, "vs_zero": pixels["vs_zero"], "r2": pixels["r2"]}
