"""Against PyTorch and transformers themselves, where they are installed."""

import json
from collections import OrderedDict, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import DATA, read_torch, relative_error

import videomae_jax as vm
from videomae_jax.errors import UserError
from videomae_jax.inference.network import build_network, predict
from videomae_jax.interop.checkpoint_files import Checkpoint, load_checkpoint, save_checkpoint
from videomae_jax.interop.convert import from_native
from videomae_jax.interop.torch_file import write_torch
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE, reconstruction_sums
from videomae_jax.models.masking import mask_from_bool
from videomae_jax.models.tokens import patch_grid, patchify, sincos_positions
from videomae_jax.models.vit import SIZES, Size

torch = pytest.importorskip("torch")
torch_detector = pytest.importorskip("torch_detector")
transformers = pytest.importorskip("transformers")
# PyTorch's threads wait by spinning: beside JAX's, on few cores, seconds become minutes.
torch.set_num_threads(1)

PATCH = (2, 16, 16)
MODELS = {
    "golden": (Size(48, 3, 3, 192), Size(32, 2, 2, 128)),
    "S": (SIZES["s"].encoder, SIZES["s"].decoder),
    "head_dim 80": (Size(160, 2, 2, 640), Size(160, 1, 2, 640)),
}
FRAMES, SIDE = 16, 64
CLASSES = 7


def config_of(task):
    """The config of the golden file, converted; the exporter reads no sizes from it."""
    file = {"pretrain": "pretrain_tiny", "classify": "finetune_tiny_deepspeed"}[task]
    return load_checkpoint(
        str(DATA / f"{file}.pth"),
        num_heads=3,
        decoder_num_heads=2,
        frames=FRAMES,
        image_size=SIDE,
    ).config


def fields(name, config):
    return dict(encoder=MODELS[name][0], patch=PATCH, mean=config.model.mean, std=config.model.std)


def randomize(params):
    """Make every bias and norm matter: initial ones are zeros and ones."""
    leaves, structure = jax.tree.flatten(params)
    generator = np.random.default_rng(0)
    noise = [0.02 * generator.standard_normal(leaf.shape) for leaf in leaves]
    moved = [np.asarray(a + b, np.float32) for a, b in zip(leaves, noise, strict=True)]
    return structure.unflatten(moved)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(1).integers(0, 256, [2, FRAMES, SIDE, SIDE, 3], np.uint8)


def pixels(video, config):
    """As transformers wants them: float [B, F, C, H, W], normalized."""
    mean, std = np.asarray(config.model.mean), np.asarray(config.model.std)
    x = (video / 255 - mean) / std
    return torch.from_numpy(x.transpose(0, 1, 4, 2, 3).astype(np.float32))


def exported(tmp_path, params, config, kind):
    """Write a folder and open it with transformers, which must miss nothing and leave nothing."""
    save_checkpoint(str(tmp_path / "hf"), Checkpoint(params, config, (), ""), to="hf")
    model, info = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def set_norms(model, eps=1e-6):
    """transformers fixes 1e-5 in fc_norm and decoder.norm, whatever the config says."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps


@pytest.mark.parametrize("name", MODELS)
def test_pretraining_agrees_with_transformers(tmp_path, video, name):
    config = config_of("pretrain")
    model = VideoMAE(decoder=MODELS[name][1], **fields(name, config))
    grid = patch_grid((FRAMES, SIDE, SIDE), PATCH)
    patches = patchify(jnp.asarray(video), PATCH)
    cells = grid[1] * grid[2]
    hidden = np.random.default_rng(2).permuted(np.tile(np.arange(cells) < 12, [2, 1]), axis=1)
    mask = mask_from_bool(jnp.asarray(hidden), masked=12)
    params = randomize(model.init(jax.random.key(0), patches, mask, grid)["params"])

    peer = exported(tmp_path, params, config, transformers.VideoMAEForPreTraining)
    theirs = torch.from_numpy(np.tile(hidden, [1, grid[0]]))

    def compare():
        with torch.no_grad():
            out = peer(pixels(video, config), bool_masked_pos=theirs)
        prediction = model.apply({"params": params}, patches, mask, grid)
        sums = reconstruction_sums(prediction, patches, mask, channels=3, normalized=True)
        loss = float(sums["error"].sum() / sums["count"].sum())
        return relative_error(prediction, out.logits), abs(loss - float(out.loss))

    as_loaded = compare()
    set_norms(peer)
    error, loss = compare()
    print(f"\npretrain {name}: as loaded {as_loaded}, with eps 1e-6 {error:.1e}, loss {loss:.1e}")
    assert error < 1e-5 and loss < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_classification_agrees_with_transformers(tmp_path, video, name):
    config = config_of("classify")
    model = VideoClassifier(classes=CLASSES, **fields(name, config))
    grid = patch_grid((FRAMES, SIDE, SIDE), PATCH)
    patches = patchify(jnp.asarray(video), PATCH)
    params = randomize(model.init(jax.random.key(0), patches, grid)["params"])
    peer = exported(tmp_path, params, config, transformers.VideoMAEForVideoClassification)

    def compare():
        with torch.no_grad():
            out = peer(pixels(video, config)).logits
        return relative_error(model.apply({"params": params}, patches, grid), out)

    as_loaded = compare()
    set_norms(peer)
    error = compare()
    print(f"\nclassify {name}: as loaded {as_loaded:.1e}, with eps 1e-6 {error:.1e}")
    assert error < 1e-5


def test_a_model_trained_here_has_the_same_loss_in_pytorch(tmp_path, video):
    """Twenty steps of AdamW, then out through a .pth and a folder."""
    m = vm.load(DATA / "pretrain_tiny.pth", num_heads=3, decoder_num_heads=2, frames=FRAMES)
    hidden = np.random.default_rng(3).permuted(np.tile(np.arange(16) < 12, [2, 1]), axis=1)
    network, optimizer = build_network(m.config), optax.adamw(1e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            return predict(network, params, video, hidden, masked=12, normalized=True)[1]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = m.params, optimizer.init(m.params), []
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 1e-3

    config = config_of("pretrain")
    save_checkpoint(str(tmp_path / "run"), Checkpoint(params, config, (), ""), to="native")
    trained = vm.load(tmp_path / "run")
    trained.save(tmp_path / "x.pth", format="mcg")
    trained.save(tmp_path / "hf", format="hf")
    peer = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "hf").eval()
    set_norms(peer)
    with torch.no_grad():
        theirs = float(
            peer(pixels(video, config), bool_masked_pos=torch.from_numpy(np.tile(hidden, 8))).loss
        )
    ours = float(trained.reconstruct(video, hidden)[1])
    print(f"\ntrained {losses[0]:.4f} -> {ours:.6f}, in PyTorch off by {abs(ours - theirs):.1e}")
    assert abs(ours - theirs) < 1e-6
    state = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    head = np.asarray(params["decoder"]["head"]["kernel"]).T
    assert np.array_equal(state["decoder.head.weight"].numpy(), head)


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "ViTMAEForPreTraining"])
def test_an_image_model_of_transformers_becomes_the_same_encoder(tmp_path, kind):
    """On one frame, without class token, at our positions: the peer's own layers agree."""
    settings = dict(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=SIDE,
        layer_norm_eps=1e-6,
        initializer_range=0.2,
    )
    mae = dict(
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    is_mae = kind == "ViTMAEForPreTraining"
    config = transformers.ViTMAEConfig(**settings, **mae) if is_mae else None
    peer = getattr(transformers, kind)(config or transformers.ViTConfig(**settings)).eval()
    torch.manual_seed(0)
    for parameter in peer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases begin at zero
    peer.save_pretrained(tmp_path / "image")

    m = vm.load(tmp_path / "image", tubelet=1)
    video = np.random.default_rng(4).integers(0, 256, [2, 1, SIDE, SIDE, 3], np.uint8)
    vit = getattr(peer, "vit", peer)
    with torch.no_grad():
        x = vit.embeddings.patch_embeddings.projection(pixels(video, m.config)[:, 0])
        x = x.flatten(2).transpose(1, 2) + torch.from_numpy(sincos_positions(16, 48))
        for layer in vit.layers:
            x = layer(x)
        theirs = vit.layernorm(x)
    error = relative_error(m.tokens(video), theirs)
    print(f"\n{kind}: {error:.1e}")
    assert error < 1e-5


def small_peer(**changes):
    """Return a small pre-training model of transformers with random weights."""
    config = transformers.VideoMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=SIDE,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        layer_norm_eps=1e-6,
        **changes,
    )
    return transformers.VideoMAEForPreTraining(config)


def test_a_folder_of_transformers_own_making_comes_in(tmp_path):
    peer = small_peer(use_mean_pooling=False)
    peer.save_pretrained(tmp_path / "one")
    peer.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    for folder in ("one", "sharded"):
        checkpoint = load_checkpoint(str(tmp_path / folder))
        assert checkpoint.config.clip.height == SIDE
        back = from_native(checkpoint.params, "hf", patch=PATCH)
        for key, tensor in peer.state_dict().items():
            assert np.array_equal(back[key], tensor.numpy()), key


def test_a_pretraining_model_of_the_default_config_reconstructs_as_transformers_does(
    tmp_path, video
):
    """With use_mean_pooling, the default, its encoder has no final norm."""
    peer = small_peer().eval()
    set_norms(peer)
    peer.save_pretrained(tmp_path / "hf")
    m = vm.load(tmp_path / "hf")
    assert "norm" not in m.params["encoder"]
    hidden = np.random.default_rng(3).permuted(np.tile(np.arange(16) < 12, [2, 1]), axis=1)
    ours, loss = m.reconstruct(video, hidden)
    with torch.no_grad():
        theirs = peer(
            pixels(video, m.config), bool_masked_pos=torch.from_numpy(np.tile(hidden, [1, 8]))
        )
    assert relative_error(ours.reshape(theirs.logits.shape), theirs.logits) < 1e-5
    assert abs(float(loss) - float(theirs.loss)) < 1e-6


@pytest.mark.parametrize(
    "change",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}],
    ids=str,
)
def test_pixels_are_those_of_transformers_own_processor(tmp_path, video, change):
    pytest.importorskip("PIL")
    checkpoint = load_checkpoint(
        str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3, image_size=SIDE
    )
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    file = tmp_path / "hf" / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {"image_mean": [0.5, 0.4, 0.3]} | change
    file.write_text(json.dumps(content))
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "hf")
    theirs = processor(list(video[0]), return_tensors="np")["pixel_values"]
    ours = pixels(video[:1], load_checkpoint(str(tmp_path / "hf")).config).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_order_of_preprocessor_files_is_that_of_transformers(tmp_path):
    pytest.importorskip("torchvision")
    checkpoint = load_checkpoint(str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3)
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    for name, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
        ("video_preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
    ):
        content = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "marker": name}
        content = {key: content} if key else content
        (tmp_path / "hf" / name).write_text(json.dumps(content))
        report = load_checkpoint(str(tmp_path / "hf")).report
        assert f"from {name} ({key})" in report if key else f"from {name}" in report
        if key != "image_processor":  # only its AutoImageProcessor reads this one
            theirs = transformers.VideoMAEVideoProcessor.from_pretrained(tmp_path / "hf")
            assert theirs.marker == name and list(theirs.image_mean) == [0.1, 0.2, 0.3]


def test_the_processor_is_found(tmp_path):
    pytest.importorskip("PIL")
    checkpoint = load_checkpoint(str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3)
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def test_torch_opens_what_is_written_and_the_reverse(tmp_path):
    params = load_checkpoint(
        str(DATA / "pretrain_tiny.pth"), num_heads=3, decoder_num_heads=2
    ).params
    tensors = from_native(params, "mcg", patch=PATCH)
    write_torch(tmp_path / "ours.pth", {"model": tensors})
    for mapped in (False, True):
        state = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mapped)["model"]
        assert state.keys() == tensors.keys()
        assert all(np.array_equal(state[key].numpy(), tensors[key]) for key in tensors)

    tree = {
        "strided": torch.arange(12.0).reshape(3, 4).T[1:, ::2],
        "half": torch.arange(5).to(torch.bfloat16),
        "bits": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
    }
    tree["shared"] = tree["strided"]
    for protocol in (2, 4):
        torch.save(tree, tmp_path / "theirs.pth", pickle_protocol=protocol)
        back = read_torch(tmp_path / "theirs.pth")
        for key, tensor in tree.items():
            assert np.array_equal(back[key], tensor.detach().to(torch.float32).numpy()), key
            assert back[key].shape == tensor.shape
    torch.save(tree, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="before 2020"):
        read_torch(tmp_path / "old.pth")


def test_a_training_checkpoint_with_an_optimizer_is_read(tmp_path):
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=np.float64(1e-3))
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    tree = {"model": layer.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(tree, tmp_path / "x.pth")
    back = read_torch(tmp_path / "x.pth")
    assert np.array_equal(back["model"]["weight"], layer.weight.detach().numpy())
    assert np.array_equal(
        back["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_objects_beside_the_weights(tmp_path):
    layer = torch.nn.Linear(3, 2)
    tree = {
        "module": layer.state_dict(),
        "param_shapes": [OrderedDict((k, x.shape) for k, x in layer.named_parameters())],
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "counts": defaultdict(list, {"a": [1]}),
        "path": tmp_path,
    }
    torch.save(tree, tmp_path / "x.pth")
    back = read_torch(tmp_path / "x.pth")
    assert back["param_shapes"] == [{"weight": (2, 3), "bias": (2,)}]
    assert (back["dtype"], back["counts"]) == ("torch.bfloat16", {"a": [1]})
    assert back["path"].name.startswith("pathlib") and back["device"].name == "torch.device"
    assert np.array_equal(back["module"]["weight"], layer.weight.detach().numpy())


def test_the_index_of_label_names(tmp_path):
    checkpoint = load_checkpoint(str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3)
    checkpoint = checkpoint._replace(labels=tuple("abcdefghij"))
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    model = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
    assert model.config.id2label[9] == "j" and model.config.num_labels == 10
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["label2id"]["j"] == 9


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_of_the_golden_detector_is_torchvisions(aligned):
    ops = pytest.importorskip("torchvision").ops
    generator = np.random.default_rng(0)
    for _ in range(100):
        height, width = generator.integers(2, 30, 2)
        features = generator.standard_normal([3, height, width])
        corners = generator.uniform(-20, 16 * max(height, width) + 20, [2, 2])
        box = np.sort(corners, axis=0).reshape(-1)
        theirs = ops.roi_align(
            torch.from_numpy(features[None]), [torch.from_numpy(box[None])], 7, 1 / 16, 0, aligned
        )
        ours = torch_detector.roi_align(features, box, 7, 1 / 16, aligned)
        np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("width, heads", [(24, 2), (384, 6), (160, 2)], ids=["golden", "S", "80"])
def test_detection_agrees_with_pytorch(tmp_path, width, heads):
    """Released names, at the size of the training clips and at that of a test."""
    state = torch_detector.random_state(width, 2, 13, seed=1)
    torch.save({"model": state}, tmp_path / "x.pth")
    m = vm.load(
        tmp_path / "x.pth",
        task="detect",
        num_heads=heads,
        frames=4,
        image_size=SIDE,
    )
    for name in ("square", "wide"):
        rows, columns = torch_detector.SIZES[name]
        video = np.random.default_rng(5).integers(0, 256, [4, rows, columns, 3], np.uint8)
        boxes = np.asarray(torch_detector.BOXES[name], np.float32)
        clip = torch_detector.normalized(video, (rows, columns))
        theirs = torch_detector.detect(state, clip, boxes, heads=heads, grid=torch_detector.GRID)
        grid = patch_grid((4, rows, columns), PATCH)
        ours = build_network(m.config).apply(
            {"params": m.params}, patchify(jnp.asarray(video[None]), PATCH), grid, boxes[None]
        )[0]
        error = relative_error(ours, theirs)
        print(f"\ndetect {width}, {name}: {error:.1e}")
        assert error < 1e-5
