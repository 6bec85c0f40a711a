"""Conversion between our parameters and the names of others: exact, and strict."""

import argparse
import functools
import json
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from golden import DATA, load_golden, read_torch, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from videomae_jax.commands import convert
from videomae_jax.config import load_recipe
from videomae_jax.data.ava_classes import AVA_CLASSES
from videomae_jax.errors import UserError
from videomae_jax.inference.network import build_network, outputs, predict
from videomae_jax.interop import publish
from videomae_jax.interop.checkpoint_files import (
    FORMATS,
    left_out_of,
    load_checkpoint,
    save_checkpoint,
)
from videomae_jax.interop.convert import choose_heads, find_tensors, from_native, to_native
from videomae_jax.interop.safetensors_file import write_safetensors
from videomae_jax.interop.torch_file import write_torch
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.mae import Decoder, VideoMAE
from videomae_jax.models.masking import Mask, gather_tubes, mask_from_bool
from videomae_jax.models.tokens import patchify, positions, sincos_positions
from videomae_jax.models.vit import SIZES, Size
from videomae_jax.tasks.detect import box_logits

PATCH = (2, 16, 16)
HEADS = dict(num_heads=3, decoder_num_heads=2)
FILES = {
    "pretrain": DATA / "pretrain_tiny.pth",
    "classify": DATA / "finetune_tiny_deepspeed.pth",
}
DETECTOR = DATA / "detect_tiny.pth"


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def random_params(init):
    """Return random parameters of the shapes that `init` gives, without compiling it."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: generator.standard_normal(x.shape, np.float32), shapes)


@functools.cache
def golden_params(task):
    return load_checkpoint(str(FILES[task]), **HEADS).params


def golden_tensors(task="pretrain", dialect="mcg"):
    return from_native(golden_params(task), dialect, patch=PATCH)


@functools.cache
def detector_tensors():
    tensors, where = find_tensors(read_torch(DETECTOR), source="x.pth")
    assert where == "model"
    return {key: np.asarray(tensor) for key, tensor in tensors.items()}


def problems(tensors, **keywords):
    with pytest.raises(UserError) as caught:
        to_native(tensors, **(HEADS | keywords))
    return str(caught.value)


def test_the_released_files_are_the_golden_parameters():
    checkpoint = load_checkpoint(str(FILES["pretrain"]), **HEADS)
    golden = load_golden("pretrain_tiny")
    assert same(checkpoint.params, golden.tree("param"))
    assert checkpoint.config.task == "pretrain"
    assert Size(**checkpoint.config.model.encoder) == golden.encoder
    assert Size(**checkpoint.config.model.decoder) == golden.decoder
    assert checkpoint.config.model.patch == PATCH
    assert "not read: optimizer, epoch, scaler, args" in checkpoint.report

    checkpoint = load_checkpoint(str(FILES["classify"]), num_heads=3)
    golden = load_golden("finetune_tiny")
    assert same(checkpoint.params, golden.classifier_tree("param"))
    released = {f"param/{k}": x for k, x in golden_tensors("classify").items()}
    assert released.keys() == {key for key in golden.arrays if key.startswith("param/")}
    assert all(np.array_equal(golden.arrays[key], released[key]) for key in released)
    assert checkpoint.config.task == "classify" and checkpoint.config.model.classes == 10
    assert checkpoint.config.clip.source_width == 0  # chosen for the clip and the videos


@pytest.mark.parametrize(
    "task, dialect",
    [("pretrain", "mcg"), ("pretrain", "hf"), ("classify", "mcg"), ("classify", "hf")]
    + [("classify", "mm")],
)
def test_round_trips_are_exact_in_both_directions(task, dialect):
    params = golden_params(task)
    tensors = from_native(params, dialect, patch=PATCH)
    back, facts = to_native(tensors, **HEADS)
    assert same(back, params)
    assert (facts.task, facts.dialect, facts.patch) == (task, dialect, PATCH)
    again = from_native(back, dialect, patch=PATCH)
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[key], tensors[key]) for key in tensors)


def test_another_shape_of_everything():
    # One channel, an oblong patch, head_dim 80 as ViT-H, deep enough for two-digit layers.
    patch = (4, 4, 2)
    model = VideoMAE(
        encoder=Size(160, 11, 2, 320),
        decoder=Size(24, 1, 4, 60),
        patch=patch,
        mean=(0.5,),
        std=(0.5,),
    )
    mask = Mask(jnp.asarray([[0, 2]]), jnp.asarray([[1, 3]]))
    params = random_params(
        lambda key: model.init(key, np.zeros([1, 8, 32], np.uint8), mask, (2, 2, 2))["params"]
    )
    for dialect in ("mcg", "hf"):
        tensors = from_native(params, dialect, patch=patch)
        back, facts = to_native(tensors, num_heads=2, decoder_num_heads=4)
        assert same(back, params)
        assert (facts.channels, facts.patch) == (1, patch)
        assert (facts.encoder, facts.decoder) == (model.encoder, model.decoder)


def test_wrappers_and_prefixes_make_no_difference(tmp_path):
    tensors, params = golden_tensors("classify"), golden_params("classify")
    path = tmp_path / "x.pth"
    for prefix in ("", "module.", "_orig_mod.", "backbone.", "_orig_mod.backbone.", "model."):
        renamed = {prefix + key: tensor for key, tensor in tensors.items()}
        for tree in (renamed, {"model": renamed}, {"module": renamed}, {"state_dict": renamed}):
            write_torch(path, tree)
            assert same(load_checkpoint(str(path), num_heads=3).params, params)
    mm = golden_tensors("classify", "mm")
    assert "backbone.blocks.2.mlp.layers.0.0.weight" in mm and "cls_head.fc_cls.bias" in mm
    mm["backbone.pos_embed"] = sincos_positions(128, 48)[None]
    write_torch(path, {"state_dict": mm, "meta": {}})
    checkpoint = load_checkpoint(str(path), num_heads=3)
    assert same(checkpoint.params, params)
    assert "backbone.pos_embed is the sine-cosine table" in checkpoint.report


@pytest.mark.parametrize("spelling", ["q_bias v_bias", "query.bias value.bias"])
def test_either_spelling_of_transformers_is_enough_and_both_must_agree(spelling):
    tensors = golden_tensors("classify", "hf")
    other = {"q_bias", "v_bias", "query.bias", "value.bias"} - set(spelling.split())
    one = {key: x for key, x in tensors.items() if not key.endswith(tuple(other))}
    assert len(one) == len(tensors) - 6
    assert same(to_native(one, **HEADS)[0], golden_params("classify"))
    name = "videomae.encoder.layer.1.attention.attention.q_bias"
    assert "doubled" in problems(tensors | {name: tensors[name] + 1})


def test_a_bare_transformers_encoder_and_a_released_encoder_are_recognised():
    for dialect, drop in (("hf", "videomae."), ("mcg", "")):
        tensors = {
            key.removeprefix(drop): x
            for key, x in golden_tensors("pretrain", dialect).items()
            if key.startswith(("videomae.", "encoder."))
        }
        params, facts = to_native(tensors, num_heads=3)
        assert facts.task == "encoder" and facts.decoder is None
        assert "an encoder only" in str(facts.table)
        assert same(params, {"encoder": golden_params("pretrain")["encoder"]})


def test_every_problem_is_reported_at_once():
    tensors = golden_tensors()
    del tensors["encoder.blocks.1.attn.q_bias"], tensors["decoder.norm.weight"]
    tensors["encoder.blocks.0.gamma_1"] = np.ones(48, np.float32)
    tensors["encoder.norm.weight"] = np.ones(47, np.float32)
    tensors["encoder.blocks.2.mlp.fc1.weight"] = tensors["encoder.blocks.2.mlp.fc1.weight"].T
    tensors["decoder.head.bias"] = np.zeros(1536, np.int32)
    tensors["module.mask_token"] = tensors["mask_token"]
    tensors["x1\N{SUPERSCRIPT TWO}1"] = np.zeros(1, np.float32)  # a digit, and no number
    report = problems(tensors, num_heads=5)
    for line in (
        "missing     encoder.blocks.1.attn.q_bias (48,)",
        "missing     decoder.norm.weight (32,)",
        "unexpected  encoder.blocks.0.gamma_1 (48,)",
        "reshaped    encoder.norm.weight is (47,), not (48,)",
        "reshaped    encoder.blocks.2.mlp.fc1.weight is (48, 192), not (192, 48)",
        "mistyped    decoder.head.bias is int32, not a float",
        "doubled     module.mask_token and mask_token are the same tensor",
        "heads       5 heads do not divide the encoder's 48: use 4",
    ):
        assert line in report
    assert len(report.splitlines()) == 10


def test_key_biases_are_left_out_and_positions_must_be_the_table():
    tensors = golden_tensors("classify", "hf")
    name = "videomae.encoder.layer.0.attention.attention.key.bias"
    for bias in (np.zeros(48, np.float32), np.arange(48, dtype=np.float32)):
        params, facts = to_native(tensors | {name: bias}, **HEADS)
        assert same(params, golden_params("classify"))
        assert f"biases on keys (1, such as {name}) are left out, exactly" in str(facts.table)
    learned = {"pos_embed": sincos_positions(8, 48)[None] + 0.01}
    assert "not the sine-cosine table" in problems(golden_tensors("classify") | learned)


def test_missing_parts_do_not_change_what_a_file_is():
    tensors = golden_tensors()
    some = {k: x for k, x in tensors.items() if not k.startswith("decoder.blocks")}
    assert "every block of the decoder" in problems(some)
    some = {k: x for k, x in tensors.items() if "patch_embed" not in k}
    report = problems(some)
    assert "missing     encoder.patch_embed.proj.weight" in report
    assert len(report.splitlines()) == 3
    with pytest.raises(UserError, match="no weights of a VideoMAE"):
        to_native({"conv1.weight": np.ones([3, 3], np.float32)})


def test_half_precision_is_widened():
    tensors = {k: x.astype(ml_dtypes.bfloat16) for k, x in golden_tensors().items()}
    params, facts = to_native(tensors, **HEADS)
    assert "bfloat16 became float32" in str(facts.table)
    assert params["mask_token"].dtype == np.float32
    assert np.array_equal(params["mask_token"], tensors["mask_token"].reshape(-1))


@settings(max_examples=150, deadline=None, database=None)
@given(
    task=st.sampled_from(["classify", "detect"]),
    edits=st.dictionaries(
        st.sampled_from(
            sorted(golden_tensors("classify"))
            + ["norm.weight", "norm.bias", "pos_embed", "blocks.9.x", "blocks.3.k_bias"]
        ),
        st.lists(st.integers(0, 50), max_size=5) | st.none(),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([np.float32, np.int8, np.bool_, ml_dtypes.bfloat16]),
)
def test_whatever_the_shapes_only_a_report_comes_out(task, edits, dtype):
    tensors = dict(golden_tensors("classify") if task == "classify" else detector_tensors())
    for key, shape in edits.items():
        if shape is None:
            tensors.pop(key, None)
        elif np.prod(shape) < 1e5:
            tensors[key] = np.zeros(shape, dtype)
    try:
        params, facts = to_native(tensors, num_heads=3)
    except UserError as problem:
        assert "fit" in str(problem) or "not the 80 of AVA" in str(problem)
    else:
        norm = {"fc_norm"} if facts.task == "classify" else set()
        assert facts.task == task and params.keys() == {"encoder", "head"} | norm


@pytest.mark.parametrize(
    "side, width, heads",
    [("encoder", w, h) for w, h in ((384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16))]
    + [("decoder", w, h) for w, h in ((192, 3), (384, 6), (512, 8), (640, 8))],
)
def test_published_widths_have_their_heads(side, width, heads):
    assert choose_heads(side, width, 12, None) == heads
    assert choose_heads(side, width, 12, None, heads) == heads
    assert choose_heads(side, width, 12, heads, 16) == heads
    with pytest.raises(UserError, match=f"--(decoder-)?num-heads {heads}"):
        choose_heads(side, width, 12, None, 2 * heads)


def test_only_our_own_tiny_model_owns_its_width():
    assert choose_heads("encoder", 128, 4, None) == 4
    assert choose_heads("encoder", 128, 2, None, 8) == 8
    with pytest.raises(UserError, match="give --num-heads N"):
        choose_heads("encoder", 128, 2, None)
    for wrong in (0, -1, 5, 1000):
        with pytest.raises(UserError, match="do not divide"):
            choose_heads("encoder", 48, 3, wrong)


# Action detectors: `norm` and `head`, and no `fc_norm`.


def with_outputs(count):
    """Return the tensors of the detector with another number of outputs."""
    tensors = detector_tensors()
    head = {
        k: np.resize(tensors[k], (count, *tensors[k].shape[1:])) for k in tensors if "head" in k
    }
    return tensors | head


def test_a_released_detector_goes_in_and_out_under_its_own_names():
    tensors = detector_tensors()
    params, facts = to_native(tensors, num_heads=2)
    assert (facts.task, facts.dialect, facts.classes, facts.patch) == ("detect", "mcg", 80, PATCH)
    assert facts.encoder == Size(24, 2, 2, 96)
    assert params.keys() == {"encoder", "head"}
    assert np.array_equal(params["encoder"]["norm"]["scale"], tensors["norm.weight"])
    assert np.array_equal(params["head"]["kernel"], tensors["head.weight"].T)
    back = from_native(params, "mcg", patch=PATCH)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)
    for dialect in ("hf", "mm"):
        with pytest.raises(UserError, match="has no action detector: use mcg, safetensors or nat"):
            from_native(params, dialect, patch=PATCH)


def test_only_80_outputs_tell_a_detector_from_a_classifier_without_pooling():
    tensors = with_outputs(13)
    report = problems(tensors, num_heads=2)
    assert "13 outputs, not the 80 of AVA" in report and "--task detect" in report
    params, facts = to_native(tensors, task="detect", num_heads=2)
    assert (facts.task, facts.classes) == ("detect", 13)
    assert params["head"]["kernel"].shape == (24, 13)
    # A classifier with 80 classes and mean pooling has another norm.
    tensors = detector_tensors()
    pooled = {f"fc_{key}" if key.startswith("norm.") else key: tensors[key] for key in tensors}
    assert to_native(pooled, num_heads=2)[1].task == "classify"


def test_the_task_that_the_user_gives_says_what_is_missing():
    tensors = detector_tensors()
    report = problems(tensors, task="classify", num_heads=2)
    assert "missing     fc_norm.weight (24,)" in report and "unexpected  norm.weight" in report
    some = {key: x for key, x in tensors.items() if key != "norm.bias"}
    assert "missing     norm.bias (24,)" in problems(some, num_heads=2)
    del some["norm.weight"]
    assert "missing     norm.weight (24,)" in problems(some, task="detect", num_heads=2)
    for task, dialect in (("pretrain", "mcg"), ("classify", "hf")):
        report = problems(golden_tensors(task, dialect), task="detect")
        assert "holds no action detector: leave out --task detect" in report
    assert "holds no classifier" in problems(golden_tensors(), task="classify")


def load_detector(path=DETECTOR, **keywords):
    return load_checkpoint(str(path), num_heads=2, frames=4, image_size=64, **keywords)


def test_the_config_of_a_released_detector_is_that_of_the_recipe():
    checkpoint = load_detector()
    config, recipe = checkpoint.config, load_recipe("detect", "b,ava")
    assert config.task == "detect" and config.model.classes == 80
    for key in ("mean", "std"):
        assert config.model[key] == recipe.model[key] != load_recipe("finetune").model[key]
    assert config.roi == recipe.roi and not config.roi.aligned
    assert (config.clip.frames, config.clip.height) == (4, 64)
    assert checkpoint.labels == config.data.class_names == AVA_CLASSES
    for said in ("detect, 32 tensors", "not read: epoch, scaler, args", "those of the reference's"):
        assert said in checkpoint.report


def test_files_beside_a_detector_come_first(tmp_path):
    write_torch(tmp_path / "x.pth", with_outputs(13))
    with_preprocessor(tmp_path, HALF)
    checkpoint = load_detector(tmp_path / "x.pth", task="detect")
    assert checkpoint.config.model.mean == (0.5,) * 3
    assert checkpoint.config.model.classes == 13 and checkpoint.labels == ()


@pytest.mark.parametrize("clip", ["square", "wide", "padded"])
def test_a_released_detector_gives_the_logits_of_pytorch(clip):
    """At the size of training clips, at another with resized positions, and for a smaller image."""
    golden = np.load(DATA / "detect_tiny.npz")
    batch = {name: golden[f"{clip}/{name}"][None] for name in ("video", "size", "boxes")}
    batch["present"] = np.ones(batch["boxes"].shape[:2], bool)
    checkpoint = load_detector()
    network = build_network(checkpoint.config)
    compute = jax.jit(lambda params, batch: box_logits(network, params, batch, whole=False))
    ours = np.asarray(compute(checkpoint.params, batch))[0]
    assert relative_error(ours, golden[f"{clip}/logits"]) < 1e-5


def test_a_detector_through_every_format(tmp_path, capsys):
    params = load_detector().params
    run(DETECTOR, tmp_path / "run", "--num-heads", 2)
    assert "CC-BY-NC" in capsys.readouterr().out
    native = load_checkpoint(str(tmp_path / "run"))
    assert same(jax.tree.map(np.asarray, native.params), params)
    assert native.config.task == "detect" and native.labels == AVA_CLASSES
    for name in ("x.pth", "x.safetensors"):
        run(tmp_path / "run", tmp_path / name)
        assert "note" not in capsys.readouterr().out
        assert same(load_detector(tmp_path / name).params, params)
    for to, cause in (
        ("hf", "no action detector"),
        ("stablehlo", "no boxes"),
        ("onnx", "no boxes"),
    ):
        with pytest.raises(UserError, match=f"{cause}.*: use .*native"):
            run(tmp_path / "run", tmp_path / "y", "--to", to)
    for name, value in (
        ("task", "detect"),
        ("num-heads", 2),
        ("decoder-num-heads", 2),
        ("frames", 8),
        ("image-size", 32),
    ):
        with pytest.raises(UserError, match=f"run of ours, which says its {name}: leave out --"):
            run(tmp_path / "run", tmp_path / "y", f"--{name}", value)
    # Other settings are not in a file of weights, and the command says so.
    config = native.config.copy_and_resolve_references()
    config.roi.aligned, config.model.mean = True, (0.5,) * 3
    save_checkpoint(str(tmp_path / "custom"), native._replace(config=config), to="native")
    run(tmp_path / "custom", tmp_path / "custom.pth")
    said = capsys.readouterr().out
    assert "roi.aligned True is not in the file, and the reference's detectors have False" in said
    assert "model.mean (0.5, 0.5, 0.5) is not in the file" in said
    run(tmp_path / "custom", tmp_path / "copy")
    assert "note" not in capsys.readouterr().out


def test_the_settings_of_a_classifier_that_a_format_cannot_hold_are_named():
    config = load_recipe("finetune", "tiny,custom").copy_and_resolve_references()
    config.model.classes = 3
    assert left_out_of(config, "mcg") == left_out_of(config, "hf") == []
    config.model.mean, config.clip.stride = (0.5,) * 3, 2
    config.data.class_names = ("jump", "roll", "walk")
    stride = "clip.stride 2 is not in the file, and its readers assume 4"
    mean = "model.mean (0.5, 0.5, 0.5) is not in the file, and its readers assume "
    mean += "(0.485, 0.456, 0.406)"
    assert left_out_of(config, "hf") == [stride]
    names = "the names of the classes are not in the file"
    assert left_out_of(config, "safetensors") == [stride, mean, names]
    config.clip.sampling = "sparse"
    assert left_out_of(config, "hf") == [
        "clip.sampling sparse is not in the file, and its readers assume dense"
    ]
    config.model.classes = 174  # those of Something-Something, which is read as sparse
    assert left_out_of(config, "hf") == left_out_of(config, "native") == []


def saved_hf(tmp_path, task="classify", labels=()):
    checkpoint = load_checkpoint(str(FILES[task]), image_size=64, frames=8, **HEADS)
    save_checkpoint(str(tmp_path / "hf"), checkpoint._replace(labels=labels), to="hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("task", FILES)
def test_a_transformers_folder_says_what_the_weights_do_not(tmp_path, task):
    labels = tuple("abcdefghij") if task == "classify" else ()
    folder = saved_hf(tmp_path, task, labels)
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-6
    assert config["use_mean_pooling"] == (task == "classify")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    back = load_checkpoint(str(folder))  # no keywords: config.json has the heads
    assert same(back.params, golden_params(task))
    assert back.labels == labels
    assert (back.config.clip.frames, back.config.clip.height) == (8, 64)
    statistics = "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225, from preprocessor_config.json"
    assert back.report.count("note") == 1 and statistics in back.report


# Preprocessor files, as the versions of transformers name them.

HALF = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
PREPROCESSORS = {
    "preprocessor_config.json": lambda content: content,
    "video_preprocessor_config.json": lambda content: content,
    "processor_config.json (video_processor)": lambda content: {"video_processor": content},
    "processor_config.json (image_processor)": lambda content: {"image_processor": content},
}


def with_preprocessor(folder, content, source="preprocessor_config.json"):
    """Write one preprocessor file instead of the one that a saved folder has."""
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / source.split()[0]).write_text(json.dumps(PREPROCESSORS[source](content)))
    return folder


def statistics(folder, **keywords):
    checkpoint = load_checkpoint(str(folder), **keywords)
    return checkpoint.config.model.mean, checkpoint.config.model.std, checkpoint.report


@pytest.mark.parametrize("source", PREPROCESSORS)
def test_every_preprocessor_file_is_read_and_named(tmp_path, source):
    folder = with_preprocessor(saved_hf(tmp_path), HALF, source)
    mean, std, report = statistics(folder)
    assert (mean, std) == ((0.5,) * 3, (0.25,) * 3)
    assert f"mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25, from {source}" in report
    # The file of weights alone is beside the same files.
    assert statistics(folder / "model.safetensors")[0] == (0.5,) * 3


@pytest.mark.parametrize(
    "content, mean, std",
    [
        (HALF | dict(rescale_factor=1 / 255), 0.5, 0.25),
        (HALF | dict(do_normalize=False), 0, 1),
        (HALF | dict(do_rescale=False), 0.5 / 255, 0.25 / 255),
        (HALF | dict(do_rescale=False, rescale_factor=7), 0.5 / 255, 0.25 / 255),
        (HALF | dict(rescale_factor=1 / 127.5), 0.5 * 127.5 / 255, 0.25 * 127.5 / 255),
        (HALF | dict(do_normalize=False, rescale_factor=1 / 127.5), 0, 127.5 / 255),
        (HALF | dict(do_normalize=False, do_rescale=False), 0, 1 / 255),
        (dict(image_mean=0.1, image_std=0.2), 0.1, 0.2),
        ({}, 0.5, 0.5),  # transformers' defaults
    ],
)
def test_pixels_are_normalized_as_the_preprocessor_does(tmp_path, content, mean, std):
    ours = statistics(with_preprocessor(saved_hf(tmp_path), content))
    np.testing.assert_allclose(ours[:2], [[mean] * 3, [std] * 3], rtol=1e-12)
    pixels = np.arange(256.0)
    factor = 1 if content.get("do_rescale") is False else content.get("rescale_factor", 1 / 255)
    theirs = pixels * factor
    if content.get("do_normalize", True):
        theirs = theirs - np.broadcast_to(content.get("image_mean", 0.5), 3)[:, None]
        theirs = theirs / np.broadcast_to(content.get("image_std", 0.5), 3)[:, None]
    mean, std = (np.asarray(values)[:, None] for values in ours[:2])
    theirs = np.broadcast_to(theirs, [3, 256])
    np.testing.assert_allclose((pixels / 255 - mean) / std, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "content, cause",
    [
        (HALF | dict(image_std=[0.5, 0, 0.5]), "above 0"),
        (HALF | dict(rescale_factor=-1), "above 0"),
        (HALF | dict(image_mean=[0.5]), "as many of both"),
        (HALF | dict(image_mean="0.5"), "must be a list of numbers"),
        (HALF | dict(image_mean=[float("nan")] * 3), "must be a list of numbers"),
        (HALF | dict(offset=True), "offset True, which is not supported"),
        (dict(image_mean=[0.5], image_std=[0.5]), "statistics of 1 channels, the weights have 3"),
        (dict(crop_size=dict(height=64, width=96)), "64 x 96: only square"),
        (dict(num_frames=0), "positive integer"),
    ],
)
def test_preprocessors_that_make_no_sense_are_refused(tmp_path, content, cause):
    folder = with_preprocessor(saved_hf(tmp_path), content)
    with pytest.raises(UserError, match=cause):
        load_checkpoint(str(folder))


def test_files_that_contradict_each_other_are_refused_and_both_named(tmp_path):
    folder = with_preprocessor(saved_hf(tmp_path), HALF)
    video = folder / "video_preprocessor_config.json"
    video.write_text(json.dumps(HALF | dict(image_std=[0.5] * 3)))
    said = f"{video.name} and preprocessor_config.json contradict each other: std"
    with pytest.raises(UserError, match=said):
        load_checkpoint(str(folder))
    video.write_text(json.dumps(HALF))
    assert f"from {video.name}" in load_checkpoint(str(folder)).report

    for field, content in (("image_size", dict(crop_size=96)), ("frames", dict(num_frames=4))):
        video.write_text(json.dumps(HALF | content))
        said = f"config.json and {video.name} contradict each other: {field}"
        with pytest.raises(UserError, match=said):
            load_checkpoint(str(folder))
    # What the user gives takes precedence over both.
    assert load_checkpoint(str(folder), frames=4).config.clip.frames == 4


def test_preprocessors_beside_a_bare_file(tmp_path):
    shutil.copy(FILES["pretrain"], tmp_path / "x.pth")
    content = HALF | dict(size=dict(height=64, width=64), num_frames=8)
    with_preprocessor(tmp_path, content, "video_preprocessor_config.json")
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"), **HEADS)
    assert checkpoint.config.model.mean == (0.5,) * 3
    assert (checkpoint.config.clip.frames, checkpoint.config.clip.width) == (8, 64)
    assert "does not say the size" not in checkpoint.report
    # A config.json of another model: the folder is about other weights.
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="vivit")))
    _, _, report = statistics(tmp_path / "x.pth", **HEADS)
    assert "std 0.229, 0.224, 0.225, those of ImageNet, are assumed" in report


# Files of training frameworks and of other people's code.


def test_a_lightning_file(tmp_path):
    tensors, path = golden_tensors("classify"), tmp_path / "x.ckpt"
    others = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": np.ones([], np.float32)}},
        "hyper_parameters": {"lr": 3},
    }
    write_torch(path, {"state_dict": {f"model.{k}": x for k, x in tensors.items()}} | others)
    checkpoint = load_checkpoint(str(path), num_heads=3)
    assert same(checkpoint.params, golden_params("classify"))
    said = "not read: epoch, pytorch-lightning_version, callbacks, hyper_parameters"
    assert said in checkpoint.report


def test_only_the_moving_average_is_in_the_file(tmp_path):
    path = tmp_path / "x.pth"
    tensors = golden_tensors("classify")
    for tree in ({"model_ema": tensors, "epoch": 3}, {"model": {}, "model_ema": tensors}):
        write_torch(path, tree)
        checkpoint = load_checkpoint(str(path), num_heads=3)
        assert same(checkpoint.params, golden_params("classify"))
        assert "the model is under 'model_ema'" in checkpoint.report
    # The model itself comes first, and what else is beside it is named.
    other = {key: tensor + 1 for key, tensor in tensors.items()}
    write_torch(path, {"model_ema": other, "model": tensors | {"step": 3}})
    checkpoint = load_checkpoint(str(path), num_heads=3)
    assert same(checkpoint.params, golden_params("classify"))
    assert "not read: model_ema, step" in checkpoint.report


def test_a_model_that_contains_itself_ends():
    tree = {"x": 1}
    tree["model"] = tree
    with pytest.raises(UserError, match="holds no model"):
        find_tensors(tree, source="x.pth")


def test_the_folders_of_v2_on_the_hub(tmp_path):
    """Their network has fc_norm but no head, and their code is not run."""
    params = {k: golden_params("classify")[k] for k in ("encoder", "fc_norm")}
    tensors = {f"model.{k}": x for k, x in golden_tensors("classify").items()}
    tensors = {key: x for key, x in tensors.items() if not key.startswith("model.head")}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    network = dict(num_heads=3, img_size=64, num_frames=8, depth=3, embed_dim=48, num_classes=0)
    config = dict(
        model_type="VideoMAEv2_Base",
        model_config=network,
        auto_map={"AutoModel": "modeling_videomaev2.VideoMAEv2"},
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_videomaev2.py").write_text("raise SystemExit('this was run')")
    checkpoint = load_checkpoint(str(tmp_path))
    assert same(checkpoint.params, params)
    clip = checkpoint.config.clip
    assert (checkpoint.config.task, clip.frames, clip.width) == ("encoder", 8, 64)
    assert "names Python code in the folder (auto_map): it was not run" in checkpoint.report

    # Its features are those that the fine-tuned model gives to its head.
    classifier = load_checkpoint(str(FILES["classify"]), num_heads=3, frames=8, image_size=64)
    video = np.random.default_rng(0).integers(0, 256, [1, 8, 64, 64, 3], np.uint8)
    ours, theirs = (
        outputs(build_network(c.config), c.params, video)["features"]
        for c in (checkpoint, classifier)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    save_checkpoint(str(tmp_path / "x.pth"), checkpoint, to="mcg")
    assert same(load_checkpoint(str(tmp_path / "x.pth"), num_heads=3).params, params)
    with pytest.raises(UserError, match="no fc_norm without a head"):
        save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")

    config["model_config"] = network | dict(cos_attn=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cos_attn True: such attention is not supported"):
        load_checkpoint(str(tmp_path))


def without_final_norm(folder, *, pooling):
    tensors = golden_tensors("pretrain", "hf")
    tensors = {key: x for key, x in tensors.items() if not key.startswith("videomae.layernorm")}
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text()) | dict(use_mean_pooling=pooling)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.slow
def test_a_pretraining_model_made_for_pooling_reconstructs_without_the_final_norm(tmp_path):
    folder = saved_hf(tmp_path, "pretrain")
    folder = without_final_norm(folder, pooling=True)
    checkpoint = load_checkpoint(folder)
    params, config = checkpoint.params, checkpoint.config
    assert config.task == "pretrain" and "norm" not in params["encoder"]
    assert "no final norm, as in transformers with use_mean_pooling true" in checkpoint.report

    # transformers maps the encoder's tokens to the decoder as they are. The same here, by hand.
    video = np.random.default_rng(0).integers(0, 256, [1, 8, 64, 64, 3], np.uint8)
    hidden = np.arange(16)[None] % 4 > 0
    network = build_network(config)
    ours, _ = predict(network, params, video, hidden, masked=12, normalized=True)
    grid, patches = (4, 4, 4), patchify(jnp.asarray(video), PATCH)
    mask = mask_from_bool(jnp.asarray(hidden), masked=12)
    encoder = network.build_encoder(final_norm=False)
    encode = jax.jit(
        lambda patches: encoder.apply({"params": params["encoder"]}, patches, grid, mask=mask)
    )
    visible = encode(patches) @ params["encoder_to_decoder"]["kernel"]
    table = np.broadcast_to(positions(grid, 32, source=None), [1, 64, 32])
    visible = visible + gather_tubes(jnp.asarray(table), mask.visible, mask)
    masked = params["mask_token"] + gather_tubes(jnp.asarray(table), mask.masked, mask)
    decoder = Decoder(Size(**config.model.decoder), network.run, 1536, "self")
    decode = jax.jit(lambda *tokens: decoder.apply({"params": params["decoder"]}, *tokens))
    theirs = decode(visible, masked)
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-5)

    save_checkpoint(str(tmp_path / "again"), checkpoint, to="hf")
    again = load_checkpoint(str(tmp_path / "again"))
    assert same(again.params, params)
    assert json.loads((tmp_path / "again/config.json").read_text())["use_mean_pooling"] is True
    with pytest.raises(UserError, match="without the encoder's final norm: use hf or native"):
        save_checkpoint(str(tmp_path / "x.pth"), checkpoint, to="mcg")


def test_the_config_and_the_weights_must_agree_on_the_final_norm(tmp_path):
    folder = saved_hf(tmp_path, "pretrain")
    with pytest.raises(UserError, match="lacks the encoder's final norm"):
        load_checkpoint(without_final_norm(folder, pooling=False))
    write_safetensors(folder / "model.safetensors", golden_tensors("pretrain", "hf"))
    config = json.loads((folder / "config.json").read_text())
    del config["use_mean_pooling"]  # true is transformers' default
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(str(folder))
    assert same(checkpoint.params, golden_params("pretrain"))
    assert "final norm is used; transformers leaves it out" in checkpoint.report


def test_sharded_folders(tmp_path):
    folder = saved_hf(tmp_path)
    tensors = golden_tensors("classify", "hf")
    names, index = sorted(tensors), {"weight_map": {}}
    (folder / "model.safetensors").unlink()
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in chosen}, folder / f"{part}.safetensors")
        index["weight_map"] |= dict.fromkeys(chosen, f"{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_checkpoint(str(folder)).params, golden_params("classify"))

    for name, file, cause in (
        (names[0], "1.safetensors", "does not hold"),
        (names[0], "../0.safetensors", "outside its own folder"),
        ("none", "0.safetensors", "does not hold none"),
        (names[0], "2.safetensors", "cannot read|No such file"),
    ):
        broken = {"weight_map": index["weight_map"] | {name: file}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=cause):
            load_checkpoint(str(folder))


@pytest.mark.parametrize(
    "change, cause",
    [
        (dict(model_type="vivit"), "not of a 'videomae'"),
        (dict(hidden_act="gelu_new"), "only 'gelu'"),
        (dict(num_attention_heads=5), "5 heads do not divide"),
        (dict(num_attention_heads="3"), "must be a positive integer"),
    ],
)
def test_a_config_that_means_another_model_is_refused(tmp_path, change, cause):
    folder = saved_hf(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=cause):
        load_checkpoint(str(folder))


def run(*arguments):
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    convert.main(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_converts_and_names_the_licence(tmp_path, capsys):
    heads = ["--num-heads", 3, "--decoder-num-heads", 2]
    for task, source in FILES.items():
        params = golden_params(task)
        for to, name in zip(FORMATS[1:4], ("x.pth", "folder", "x.safetensors"), strict=True):
            target = tmp_path / task / name
            run(source, target, *(["--to", to] if to == "hf" else []), *heads)
            output = capsys.readouterr().out
            assert "CC-BY-NC" in output and "attn/qkv" in output
            assert same(load_checkpoint(str(target), **HEADS).params, params)


def test_a_refused_conversion_leaves_nothing(tmp_path):
    for arguments in (
        [FILES["pretrain"], tmp_path / "x.pth"],
        [FILES["pretrain"], tmp_path / "x", "--to", "hf", "--num-heads", 3],
        [tmp_path / "none", tmp_path / "x"],
        [DATA, tmp_path / "x"],
    ):
        with pytest.raises(UserError):
            run(*arguments)
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        run(FILES["classify"], tmp_path / "kept", "--to", "mcg", "--num-heads", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--frames=7", "frames 7 is not a multiple of the patch's 2: use 6 or 8"),
        ("--frames=-4", "frames -4 is not a multiple of the patch's 2: use 2"),
        ("--image-size=0", "height 0 is not a multiple of the patch's"),
        ("--num-heads=0", "0 heads do not divide the encoder's"),
    ],
)
def test_a_size_that_no_model_has_is_refused(flag, words, tmp_path):
    with pytest.raises(UserError, match=words):
        run(FILES["classify"], tmp_path / "x", "--num-heads", 3, flag)
    assert not list(tmp_path.iterdir())


def test_what_is_pushed_says_what_a_folder_of_transformers_cannot_hold(
    tmp_path, monkeypatch, capsys
):
    native = load_checkpoint(str(FILES["classify"]), num_heads=3)
    native.config.unlock().clip.stride = 2
    save_checkpoint(str(tmp_path / "run"), native, to="native")
    monkeypatch.setattr(publish, "publish", lambda *_, to, **__: [f"wrote {to}"])
    run(tmp_path / "run", "hf://me/model")
    said = capsys.readouterr().out
    assert "wrote hf" in said and "note: clip.stride 2 is not in the file" in said


@pytest.mark.parametrize("to", ["mcg", "hf", "safetensors"])
def test_positions_that_other_readers_do_not_compute_are_refused(tmp_path, to):
    checkpoint = load_checkpoint(str(FILES["pretrain"]), **HEADS)
    checkpoint.config.unlock().model.positions = "3d"
    with pytest.raises(
        UserError, match=f"of {to} files compute 1d positions, and the model has 3d"
    ):
        save_checkpoint(str(tmp_path / "x"), checkpoint, to=to)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = load_checkpoint(str(FILES["classify"]), num_heads=3)

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("videomae_jax.interop.checkpoint_files.write_safetensors", fail)
    for to in ("hf", "safetensors"):
        with pytest.raises(UserError, match="No space left"):
            save_checkpoint(str(tmp_path / "x"), checkpoint, to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", FILES)
def test_through_a_native_folder(tmp_path, task):
    run(FILES[task], tmp_path / "run", "--num-heads", 3, "--decoder-num-heads", 2)
    back = load_checkpoint(str(tmp_path / "run"))
    assert same(jax.tree.map(np.asarray, back.params), golden_params(task))
    assert back.config.task == task and back.report == ""
    run(tmp_path / "run", tmp_path / "x.pth")
    again = load_checkpoint(str(tmp_path / "x.pth"), **HEADS)
    assert same(again.params, golden_params(task))
    shutil.rmtree(tmp_path / "run")


# Reading a file of 87 MB needs the memory of the parameters and of a few of its tensors.

PROBE = """
import sys
from videomae_jax.interop.checkpoint_files import load_checkpoint

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

load_checkpoint(sys.argv[1], num_heads=3, decoder_num_heads=2)  # imports everything
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak
load_checkpoint(sys.argv[2])
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large_tensors():
    """A ViT-S classifier with the names of MCG-NJU."""
    model = VideoClassifier(SIZES["s"].encoder, (2, 16, 16), (0.5,) * 3, (0.5,) * 3, classes=400)
    params = random_params(lambda key: init_classifier(model, key, (1, 1, 1)))
    return from_native(params, "mcg", patch=model.patch)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_reading_takes_less_than_twice_the_file(tmp_path, large_tensors, form):
    tensors, path = large_tensors, tmp_path / f"x.{form}"
    if form == "pth":
        write_torch(path, {"model": tensors})
    else:
        write_safetensors(path, tensors)
    assert path.stat().st_size > 64e6
    command = [sys.executable, "-c", PROBE, DATA / "pretrain_tiny.pth", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    ratio = int(done.stdout) / path.stat().st_size
    print(f"\n{form}: {ratio:.2f} of {path.stat().st_size / 1e6:.0f} MB")
    # The parameters alone are 1.0.
    assert 0.9 < ratio < 1.5


def test_safetensors_are_known_by_what_is_in_them(tmp_path):
    checkpoint = load_checkpoint(str(FILES["pretrain"]), num_heads=3, decoder_num_heads=2)
    assert "does not say the size of its clips: 16 frames of 224 pixels" in checkpoint.report
    save_checkpoint(str(tmp_path / "weights"), checkpoint, to="safetensors")
    back = load_checkpoint(str(tmp_path / "weights"), num_heads=3, decoder_num_heads=2)
    assert same(jax.tree.map(np.asarray, back.params), golden_params("pretrain"))


def test_a_file_that_cannot_be_read_is_one_line():
    # Opens, and then fails as a broken disk does.
    with pytest.raises(UserError, match="cannot read /proc/self/mem: Input/output error"):
        load_checkpoint("/proc/self/mem")


@pytest.mark.parametrize("form", ["mcg", "hf", "safetensors"])
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path, form):
    source = load_checkpoint(str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # As on a full disk, but for the words.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(UserError, match="cannot write .*model: .*File too large"):
            save_checkpoint(str(tmp_path / "model"), source, to=form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # in a process of its own: the threads of a failed save wait for each other
def test_a_disk_that_is_full_is_one_line_for_a_work_directory(tmp_path):
    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    command = [sys.executable, "-m", "videomae_jax.cli", "convert", "--num-heads=3", "--to=native"]
    words = [*command, str(DATA / "finetune_tiny_deepspeed.pth"), str(tmp_path / "model")]
    done = subprocess.run(words, preexec_fn=fill, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    # Other writes may end after orbax has closed its event loop, which Python then prints.
    said = done.stderr.strip().splitlines()[-1]
    assert said == f"videomae: cannot write {tmp_path}/model: File too large"
    assert "ERROR:absl" not in done.stderr
