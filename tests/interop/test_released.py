"""The list of released models, and every form of file in it with random weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from golden import DATA
from runs import fails
from safetensors.numpy import save_file

from videomae_jax.config import load_config_and_given
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import load_checkpoint, read_geometry
from videomae_jax.interop.convert import from_native
from videomae_jax.interop.hub import parse_address
from videomae_jax.interop.init_from import with_source_geometry
from videomae_jax.interop.released import FORMS, RELEASED, address_of, heads_of
from videomae_jax.interop.torch_file import write_torch
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.vit import SIZES

PATCH = (2, 16, 16)
FINETUNED = DATA / "finetune_tiny_deepspeed.pth"


def finetuned(classes=10):
    """Return the golden classifier, repeated to so many classes, as half precision keeps it."""
    params = load_checkpoint(str(FINETUNED), num_heads=3).params
    params = {**params, "head": {k: resize(x, classes) for k, x in params["head"].items()}}
    return cast(params, lambda x: x.astype(np.float16).astype(np.float32))


def resize(array, classes):
    return np.resize(array, (*array.shape[:-1], classes))


def cast(tree, change):
    if isinstance(tree, dict):
        return {key: cast(value, change) for key, value in tree.items()}
    return change(np.asarray(tree))


def same(ours, theirs):
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in theirs)
    return ours.dtype == np.float32 and np.array_equal(ours, theirs)


def half(params, dialect="mcg"):
    return cast(from_native(params, dialect, patch=PATCH), lambda x: x.astype(np.float16))


def transformers(folder):
    """As on the hub: a pickle, and the biases of 2022."""
    params = finetuned()
    tensors = from_native(params, "hf", patch=PATCH)
    tensors = {k: x for k, x in tensors.items() if not k.endswith(("query.bias", "value.bias"))}
    write_torch(folder / "pytorch_model.bin", tensors)
    config = dict(model_type="videomae", num_attention_heads=3, hidden_size=48)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, params, {}


def original(folder):
    keywords = dict(num_heads=3, decoder_num_heads=2)
    path = DATA / "pretrain_tiny.pth"
    return path, load_checkpoint(str(path), **keywords).params, keywords


def deepspeed(folder):
    return FINETUNED, load_checkpoint(str(FINETUNED), num_heads=3).params, dict(num_heads=3)


def half_precision(folder):
    params = finetuned(710)
    write_torch(folder / "x.pth", {"module": half(params)})
    return folder / "x.pth", params, dict(num_heads=3)


def v2_folder(folder):
    params = {key: finetuned()[key] for key in ("encoder", "fc_norm")}
    tensors = {
        f"model.{key}": tensor
        for key, tensor in from_native(finetuned(), "mcg", patch=PATCH).items()
        if not key.startswith("head")
    }
    save_file(tensors, folder / "model.safetensors")
    network = dict(num_heads=3, img_size=224, num_frames=16, num_classes=0)
    config = dict(model_config=network, auto_map={"AutoModel": "modeling_videomaev2.VideoMAEv2"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_videomaev2.py").write_text("raise SystemExit('this was run')")
    return folder, params, {}


def mmaction2(folder):
    params = finetuned(400)
    write_torch(folder / "x.pth", {"state_dict": half(params, "mm"), "meta": {"epoch": 1}})
    return folder / "x.pth", params, dict(num_heads=3)


def detector(folder):
    path = DATA / "detect_tiny.pth"
    return path, load_checkpoint(str(path), num_heads=2).params, dict(num_heads=2)


MAKERS = {
    "transformers": transformers,
    "original": original,
    "deepspeed": deepspeed,
    "half": half_precision,
    "v2-folder": v2_folder,
    "mmaction2": mmaction2,
    "detector": detector,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_is_read(tmp_path, form):
    path, params, keywords = MAKERS[form](tmp_path)
    checkpoint = load_checkpoint(str(path), **keywords)
    assert same(checkpoint.params, params)
    tasks = {model.task for model in RELEASED.values() if model.form == form}
    assert checkpoint.config.task in tasks
    clips = {model.clip for model in RELEASED.values() if model.form == form}
    clip = checkpoint.config.clip
    assert clips == {f"{clip.frames} x {clip.height} x {clip.width}"}


@pytest.mark.parametrize("wrapper", ["", "model", "module"])
def test_half_precision_is_widened_exactly_under_any_wrapper(tmp_path, wrapper):
    params = finetuned(710)
    tensors = half(params)
    write_torch(tmp_path / "x.pth", {wrapper: tensors} if wrapper else tensors)
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"), num_heads=3)
    assert same(checkpoint.params, params) and checkpoint.config.model.classes == 710
    assert "float16 became float32" in checkpoint.report


def shapes_of(size, classes):
    model = VideoClassifier(size, PATCH, (0.5,) * 3, (0.5,) * 3, classes=classes)
    return jax.eval_shape(lambda key: init_classifier(model, key, (1, 1, 1)), jax.random.key(0))


@pytest.mark.parametrize("size", ["s", "b"])
def test_the_size_of_the_distilled_files_is_that_of_our_classifier_in_float16(size):
    """What `unverified` concludes. Both have the same rest, so as many tensors of such names."""
    numbers = sum(x.size for x in jax.tree.leaves(shapes_of(SIZES[size].encoder, 710)))
    file = RELEASED[f"videomaev2-{size}-k710-distilled"].size_mb * 1e6
    assert round(file) == 2 * numbers + 28_037


@pytest.mark.parametrize("model", RELEASED.values(), ids=lambda model: model.name)
def test_the_list_is_complete(model):
    assert model.form in FORMS and model.size in SIZES and model.source
    assert bool(model.address) != bool(model.page)
    assert bool(model.classes) == (model.task in ("classify", "detect"))
    assert bool(model.scores) == bool(model.protocol)
    assert len(model.sha256) in (0, 64)
    if model.address:
        address = parse_address(model.address)
        assert str(address) == model.address
        assert heads_of(address._replace(revision="0" * 40)) == SIZES[model.size].encoder.heads
    else:
        with pytest.raises(UserError, match="by hand|download it from https://"):
            address_of(f"models:{model.name}")


def test_a_name_is_an_address_of_the_hub(hub, tmp_path, capsys):
    """The file in its place, with random weights; a run that starts from it stores the commit."""
    _, params, keywords = half_precision(tmp_path)
    address = parse_address(address_of("models:videomaev2-s-k710-distilled"))
    content = {address.path: (tmp_path / "x.pth").read_bytes(), "mae-b/pytorch_model.bin": b""}
    hub.add(address.repository, content, commit=address.revision, licence="apache-2.0")
    checkpoint = load_checkpoint("models:videomaev2-s-k710-distilled", **keywords)
    assert same(checkpoint.params, params)
    said = capsys.readouterr().err
    assert said.startswith(f"models:videomaev2-s-k710-distilled is {address}, licence: apache-2.0")
    flags = ["--config.init_from=models:videomaev2-s-k710-distilled"]
    config = with_source_geometry(*load_config_and_given("finetune:b,custom", flags))
    assert config.init_from == str(address) and config.model.encoder.width == 48


def test_the_heads_of_the_small_models_are_those_of_the_original(hub, tmp_path):
    """A converter of 2023 wrote 16 into config.json."""
    shapes = shapes_of(dataclasses.replace(SIZES["s"].encoder, depth=1), 400)
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    write_torch(tmp_path / "weights", from_native(params, "hf", patch=PATCH))
    config = dict(model_type="videomae", num_attention_heads=16)
    files = {"pytorch_model.bin": (tmp_path / "weights").read_bytes()}
    files["config.json"] = json.dumps(config).encode()
    hub.add("MCG-NJU/videomae-small-finetuned-kinetics", files)
    hub.add("lab/small", files)
    checkpoint = load_checkpoint("models:videomae-s-k400-ft")
    assert checkpoint.config.model.encoder.heads == 6
    assert read_geometry("models:videomae-s-k400-ft")["model.encoder.heads"] == 6
    with pytest.raises(UserError, match="16 heads .* ViT-s has 6: use --num-heads 6"):
        load_checkpoint("hf://lab/small")


def test_unknown_names(capsys, tmp_path):
    said = fails(capsys, "convert", "models:videomae-b-k40", tmp_path / "x")
    assert "`videomae models` lists the names; did you mean 'videomae-b-k400'?" in said
    said = fails(capsys, "convert", "models:videomae-s-k400", tmp_path / "x")
    assert "download it from https://drive.google.com/file/d/1nU-H1u3eJ" in said


@pytest.mark.parametrize(
    ("classes", "sampling", "views"), [(174, "sparse", "2x3"), (400, "dense", "5x3")]
)
def test_classifiers_of_ssv2_take_frames_of_the_whole_video(tmp_path, classes, sampling, views):
    write_torch(tmp_path / "x.pth", {"module": half(finetuned(classes))})
    loaded = load_checkpoint(str(tmp_path / "x.pth"), num_heads=3)
    assert (loaded.config.clip.sampling, loaded.config.views) == (sampling, views)
    assert ("Something-Something" in loaded.report) == (classes == 174)
