"""Image ViTs and MAEs as the beginning of a video encoder: exact where it can be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import DATA

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import load_checkpoint
from videomae_jax.interop.inflate import change_channels, inflate_kernel
from videomae_jax.interop.safetensors_file import write_safetensors
from videomae_jax.interop.torch_file import write_torch
from videomae_jax.models.tokens import normalize_pixels, patchify

WIDTH, DEPTH, SIDE = 48, 2, 32
BLOCK = {
    "norm1.weight": [WIDTH],
    "norm1.bias": [WIDTH],
    "attn.qkv.weight": [3 * WIDTH, WIDTH],
    "attn.qkv.bias": [3 * WIDTH],
    "attn.proj.weight": [WIDTH, WIDTH],
    "attn.proj.bias": [WIDTH],
    "norm2.weight": [WIDTH],
    "norm2.bias": [WIDTH],
    "mlp.fc1.weight": [96, WIDTH],
    "mlp.fc1.bias": [96],
    "mlp.fc2.weight": [WIDTH, 96],
    "mlp.fc2.bias": [WIDTH],
}
SHAPES = {
    "cls_token": [1, 1, WIDTH],
    "pos_embed": [1, 5, WIDTH],
    "patch_embed.proj.weight": [WIDTH, 3, 16, 16],
    "patch_embed.proj.bias": [WIDTH],
    **{f"blocks.{i}.{name}": shape for i in range(DEPTH) for name, shape in BLOCK.items()},
    "norm.weight": [WIDTH],
    "norm.bias": [WIDTH],
}
# What the whole MAE holds beyond its encoder.
MAE = {
    "mask_token": [1, 1, 32],
    "decoder_embed.weight": [32, WIDTH],
    "decoder_pos_embed": [1, 5, 32],
    "decoder_blocks.0.norm1.weight": [32],
    "decoder_norm.weight": [32],
    "decoder_pred.weight": [768, 32],
}
HF = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def timm_vit(**more):
    generator = np.random.default_rng(0)
    shapes = SHAPES | more
    return {k: 0.2 * generator.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def as_transformers(tensors):
    """The same ViT in the names of transformers."""
    renamed = {}
    for key, tensor in tensors.items():
        key = key.replace("cls_token", "vit.embeddings.cls_token")
        key = key.replace("pos_embed", "vit.embeddings.position_embeddings")
        key = key.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
        key = key.replace("blocks.", "vit.encoder.layer.")
        key = "vit.layer" + key if key.startswith("norm.") else key
        for old, new in HF.items():
            key = key.replace(f".{old}.", f".{new}.")
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                renamed[key.replace("attn.qkv", f"attention.attention.{name}")] = part
        else:
            renamed[key] = tensor
    return renamed


def opened(tmp_path, tensors, **keywords):
    write_safetensors(tmp_path / "image.safetensors", tensors)
    return load_checkpoint(str(tmp_path / "image.safetensors"), num_heads=3, **keywords)


def embed(checkpoint, video):
    patches = patchify(jnp.asarray(video), checkpoint.config.model.patch)
    layer, model = checkpoint.params["encoder"]["embed"], checkpoint.config.model
    return normalize_pixels(patches, model.mean, model.std) @ layer["kernel"] + layer["bias"]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, [1, 1, SIDE, SIDE, 3], np.uint8)


@pytest.mark.parametrize("inflate", ["mean", "centre"])
@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_a_still_video_is_embedded_as_the_image(tmp_path, image, inflate, tubelet):
    tensors = timm_vit()
    checkpoint = opened(tmp_path, tensors, inflate=inflate, tubelet=tubelet)
    assert checkpoint.config.task == "encoder" and checkpoint.config.model.patch[0] == tubelet
    made = embed(checkpoint, np.repeat(image, 2 * tubelet, axis=1)).reshape(2, 4, WIDTH)
    # The image's own convolution, in NumPy.
    mean, std = np.asarray(checkpoint.config.model.mean), np.asarray(checkpoint.config.model.std)
    pixels = ((image[0, 0] / 255 - mean) / std).reshape(2, 16, 2, 16, 3)
    expected = np.einsum("ahbwc,dchw->abd", pixels, tensors["patch_embed.proj.weight"])
    expected = expected.reshape(4, WIDTH) + tensors["patch_embed.proj.bias"]
    for step in made:
        np.testing.assert_allclose(step, expected, rtol=1e-4, atol=1e-4)


def test_inflation_says_which_frames_count():
    kernel = np.ones([2, 3, 4, 4], np.float32)
    assert (inflate_kernel(kernel, "mean", 2) == 0.5).all()
    centre = inflate_kernel(kernel, "centre", 4)
    assert centre.sum((0, 1, 3, 4)).tolist() == [0, 0, 96, 0]


def test_every_dialect_gives_the_same_encoder(tmp_path):
    tensors = timm_vit()
    plain = opened(tmp_path, tensors)
    dialects = {
        "MAE": tensors | timm_vit(**MAE),
        "fine-tuned": tensors | {"head.weight": np.ones([7, WIDTH], np.float32)},
        "wrapped": {f"module.{key}": tensor for key, tensor in tensors.items()},
        "transformers": as_transformers(tensors),
        "bare transformers": {
            key.removeprefix("vit."): tensor for key, tensor in as_transformers(tensors).items()
        },
    }
    dialects["MAE"] |= tensors
    for dialect in dialects.values():
        other = opened(tmp_path, dialect)
        jax.tree.map(np.testing.assert_array_equal, other.params, plain.params)
        for said in ("no class token", "sine-cosine", "2 biases on keys", "1/2 of the weights"):
            assert said in other.report
    assert "for images only: head" in opened(tmp_path, dialects["fine-tuned"]).report
    left_out = ", ".join(sorted(key.split(".")[0] for key in MAE))
    assert f"for images only: {left_out}" in opened(tmp_path, dialects["MAE"]).report
    write_torch(tmp_path / "mae.pth", {"model": dialects["MAE"]})
    released = load_checkpoint(str(tmp_path / "mae.pth"), num_heads=3)
    jax.tree.map(np.testing.assert_array_equal, released.params, plain.params)


def test_leaving_out_the_bias_on_keys_is_exact(tmp_path):
    # The same block by hand, with the bias: the scores of a query all move by one number.
    tensors = timm_vit()
    model = vm.load(saved(tmp_path, tensors), num_heads=3, inflate="mean", tubelet=1)
    x = np.random.default_rng(2).standard_normal([7, WIDTH])
    weight, bias = tensors["blocks.0.attn.qkv.weight"], tensors["blocks.0.attn.qkv.bias"]

    def attend(bias):
        q, k, v = ((x @ weight.T + bias).reshape(7, 3, 3, 16)).transpose(1, 2, 0, 3)
        scores = np.exp(q @ k.transpose(0, 2, 1) / 4)
        return scores / scores.sum(-1, keepdims=True) @ v

    kept = model.params["encoder"]["blocks"]["attn"]
    q_bias, v_bias = (np.asarray(kept[name][0]).reshape(-1) for name in ("q_bias", "v_bias"))
    without = np.concatenate([q_bias, np.zeros(WIDTH), v_bias])
    assert np.abs(bias - without).max() > 0.1
    np.testing.assert_allclose(attend(bias), attend(without), rtol=1e-10)


def saved(tmp_path, tensors):
    write_safetensors(tmp_path / "image.safetensors", tensors)
    return tmp_path / "image.safetensors"


def test_what_is_not_a_plain_vit_is_refused(tmp_path):
    tensors = timm_vit()
    for more in ("blocks.0.ls1.gamma", "reg_token", "blocks.1.attn.q_norm.weight", "norm_pre.bias"):
        with pytest.raises(UserError, match=f"unexpected  .*{more}"):
            opened(tmp_path, tensors | {more: np.ones([WIDTH], np.float32)})
    del tensors["blocks.1.attn.qkv.bias"]
    with pytest.raises(UserError, match="missing     encoder.blocks.1.attn.q_bias"):
        opened(tmp_path, tensors)
    with pytest.raises(UserError, match="inflation 'center' is unknown: use mean or centre"):
        opened(tmp_path, timm_vit(), inflate="center")
    with pytest.raises(UserError, match="a tubelet of 0 frames: use 1 or more"):
        opened(tmp_path, timm_vit(), tubelet=0)
    with pytest.raises(UserError, match="holds a video model: leave out --inflate"):
        vm.load(DATA / "pretrain_tiny.pth", num_heads=3, decoder_num_heads=2, inflate="mean")


def test_configs_beside_an_image_model_are_read(tmp_path):
    half = [0.5, 0.5, 0.5]
    timm = {"architecture": "vit", "pretrained_cfg": {"mean": half, "input_size": [3, 32, 32]}}
    hf = {"model_type": "vit_mae", "num_attention_heads": 3, "image_size": 32}
    for name, config, tensors in (
        ("timm", timm, timm_vit()),
        ("hf", hf, as_transformers(timm_vit())),
    ):
        folder = tmp_path / name
        folder.mkdir()
        write_safetensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config))
        if name == "hf":
            (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": half}))
        heads = dict(num_heads=3) if name == "timm" else {}
        checkpoint = load_checkpoint(str(folder), **heads)
        assert checkpoint.config.model.mean == (0.5, 0.5, 0.5)
        assert (checkpoint.config.clip.frames, checkpoint.config.clip.height) == (16, 32)


def test_the_command_makes_an_encoder_that_runs(tmp_path, capsys):
    source, target = saved(tmp_path, timm_vit()), tmp_path / "start"
    flags = ["--inflate", "centre", "--num-heads", "3", "--frames", "4", "--image-size", "32"]
    cli.main(["convert", str(source), str(target), *flags])
    assert "frame 1 of 0 to 1 has the weights" in capsys.readouterr().out
    model = vm.load(target)
    assert model.config.task == "encoder" and "norm" in model.params["encoder"]
    assert model.features(np.zeros([2, 4, 32, 32, 3], np.uint8)).shape == (2, WIDTH)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_grey_is_embedded_as_before_in_any_number_of_channels(channels):
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal([2 * 4 * 4 * 3, 8]).astype(np.float32)
    grey = generator.standard_normal([6, 2 * 4 * 4, 1])
    changed = change_channels(kernel, old=3, new=channels)
    before = grey.repeat(3, -1).reshape(6, -1) @ kernel
    after = grey.repeat(channels, -1).reshape(6, -1) @ changed
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_channels_of_any_source(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, [1, 4, 32, 32, 1], np.uint8)
    one = vm.load(DATA / "finetune_tiny_deepspeed.pth", num_heads=3, channels=1)
    assert one.logits(video).shape == (1, 10) and len(one.config.model.std) == 1
    pretrained = dict(num_heads=3, decoder_num_heads=2)
    two = vm.load(DATA / "pretrain_tiny.pth", channels=2, **pretrained)
    assert two.config.task == "encoder" and "the decoder is left out" in two.report
    two.save(tmp_path / "run")
    again = vm.load(tmp_path / "run")
    assert again.features(video.repeat(2, -1)).shape == (1, WIDTH)
    kernel = vm.load(tmp_path / "run", channels=1).params["encoder"]["embed"]["kernel"]
    assert kernel.shape == (2 * 16 * 16 * 1, WIDTH)
    with pytest.raises(UserError, match="0 channels: use 1 or more, such as 3"):
        vm.load(DATA / "pretrain_tiny.pth", channels=0, **pretrained)
