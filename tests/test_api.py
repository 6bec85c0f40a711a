"""`videomae_jax.load`: the golden numbers from the released files, and clear refusals."""

import dataclasses
import functools
import json
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from golden import DATA, load_golden, relative_error
from runs import CLIPS, KINDS, rows
from videos import write_video

import videomae_jax as vm
from videomae_jax import api, cli
from videomae_jax.data.decode import read_clip as read_frames
from videomae_jax.data.samplers import PretrainSampler
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import Checkpoint
from videomae_jax.tasks import classify

TOLERANCE = 1e-5
FILES = {"pretrain": "pretrain_tiny.pth", "classify": "finetune_tiny_deepspeed.pth"}


@functools.cache
def model(task):
    return vm.load(DATA / FILES[task], num_heads=3, decoder_num_heads=2)


@functools.cache
def golden(task):
    arrays = load_golden({"pretrain": "pretrain_tiny", "classify": "finetune_tiny"}[task]).arrays
    return arrays, arrays["video_uint8"]


def test_a_fine_tuned_file_computes_what_the_reference_does():
    arrays, video = golden("classify")
    m = model("classify")
    tokens, features, logits = m.tokens(video), m.features(video), m.logits(video)
    assert tokens.shape == (2, 128, 48) and features.shape == (2, 48) and logits.shape == (2, 10)
    assert {x.dtype.name for x in (tokens, features, logits)} == {"float32"}
    errors = [
        relative_error(features, arrays["features"]),
        relative_error(logits, arrays["logits"]),
    ]
    print(f"\nfeatures {errors[0]:.1e}, logits {errors[1]:.1e}")
    assert max(errors) < TOLERANCE


def test_a_pre_trained_file_computes_what_the_reference_does():
    arrays, video = golden("pretrain")
    m = model("pretrain")
    prediction, loss = m.reconstruct(video, arrays["masks"][0][:, :16])
    assert prediction.shape == (2, 8, 12, 1536) and prediction.dtype == np.float32
    assert loss.shape == () and loss.dtype == np.float32
    # The file keeps every fourth masked token.
    error = relative_error(prediction.reshape(2, 96, -1)[:, ::4], arrays["prediction"])
    off = abs(loss / arrays["losses"][0] - 1)
    print(f"\nprediction {error:.1e}, loss {off:.1e}")
    assert error < TOLERANCE and off < TOLERANCE
    np.testing.assert_allclose(m.features(video), m.tokens(video).mean(1), atol=1e-6)


def test_tokens_are_normed_and_in_raster_order():
    _, video = golden("pretrain")
    m = model("pretrain")
    tokens = np.asarray(m.tokens(video))
    norm = m.params["encoder"]["norm"]
    plain = (tokens - norm["bias"]) / norm["scale"]
    np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(plain.std(-1), 1, atol=1e-3)
    # A pixel of the third patch of the second time step moves that token most.
    changed = video.copy()
    changed[:, 2:4, 0:16, 32:48] = 255 - changed[:, 2:4, 0:16, 32:48]
    moved = np.abs(np.asarray(m.tokens(changed)) - tokens).max(-1)
    assert set(moved.argmax(-1)) == {16 + 2}


def test_every_shape_is_traced_once_and_may_differ_from_the_checkpoint(monkeypatch):
    traced = []
    original = api.outputs
    monkeypatch.setattr(api, "outputs", lambda *a: traced.append(a[2].shape) or original(*a))
    m = vm.load(DATA / FILES["classify"], num_heads=3)
    _, video = golden("classify")
    for shape in ((2, 16, 64, 64), (2, 16, 64, 64), (1, 4, 32, 48), (1, 4, 32, 48)):
        clip = video[: shape[0], : shape[1], : shape[2], : shape[3]]
        assert m.features(clip).shape == (shape[0], 48)
        m.features(jax.numpy.asarray(clip))
    assert traced == [(2, 16, 64, 64, 3), (1, 4, 32, 48, 3)]


VIDEO = np.zeros([1, 4, 32, 32, 3], np.uint8)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (VIDEO[0], r"video is \[4, 32, 32, 3\]: give \[B, F, H, W, C\]; video\[None\]"),
        (VIDEO / 255, "video is float64: give uint8, 0 to 255"),
        (VIDEO[..., :1], "1 channels last: give 3"),
        (VIDEO[:0], "no clips: give 1 or more"),
        (VIDEO[:, :3], "frames 3 is not a multiple of the patch's 2: use 2 or 4"),
        (VIDEO[:, :, :30], "height 30 is not a multiple of the patch's 16: use 16 or 32"),
    ],
)
def test_a_video_the_model_cannot_take_is_refused(video, message):
    for call in (model("classify").logits, model("pretrain").features):
        with pytest.raises(UserError, match=message) as caught:
            call(video)
        assert "\n" not in str(caught.value)


def mask(*rows):
    return np.asarray(rows) > 0


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        (mask([1, 0, 0, 0], [1, 0, 1, 0]), "hides 1 to 2 patches: hide as many in every clip"),
        (mask([0] * 4, [0] * 4), "hides 0 of 4 patches: hide 1 to 3"),
        (mask([1] * 4, [1] * 4), "hides 4 of 4 patches: hide 1 to 3"),
        (mask([1, 0, 0, 0]), r"masked is bool \[1, 4\]: give bool \[2, 4\]"),
        (np.ones([2, 4], int), r"masked is int64 \[2, 4\]: give bool \[2, 4\]"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(masked, message):
    with pytest.raises(UserError, match=message):
        model("pretrain").reconstruct(np.concatenate([VIDEO, VIDEO]), masked)


def test_what_a_model_is_not_for_is_refused():
    with pytest.raises(UserError, match="task 'pretrain' has no classes"):
        model("pretrain").logits(VIDEO)
    with pytest.raises(UserError, match="task 'classify' has no decoder"):
        model("classify").reconstruct(VIDEO, mask([1, 0, 0, 0]))
    with pytest.raises(UserError, match=r"give --num-heads N \(in Python num_heads=N\)"):
        vm.load(DATA / FILES["classify"])


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("form", ["native", "mcg", "hf", "safetensors"])
def test_what_is_saved_computes_the_same(tmp_path, task, form):
    path = tmp_path / ("x.pth" if form == "mcg" else f"x.{form}")
    model(task).save(path, format=form)
    heads = {} if form == "native" else dict(num_heads=3, decoder_num_heads=2)
    back = vm.load(path, **heads)
    _, video = golden(task)
    np.testing.assert_array_equal(back.features(video), model(task).features(video))


def test_a_format_that_cannot_hold_all_settings_warns(tmp_path):
    m = vm.load(DATA / "detect_tiny.pth", num_heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.save(tmp_path / "same.pth", format="mcg")
    config = m.config.copy_and_resolve_references()
    config.roi.aligned, config.data.class_names = True, ("a", *m.labels[1:])
    m = api.Model(api.Checkpoint(m.params, config, config.data.class_names, ""))
    with pytest.warns(UserWarning) as caught:
        m.save(tmp_path / "x.pth", format="mcg")
    said = [str(warning.message) for warning in caught]
    assert said[0].endswith(
        "x.pth: roi.aligned True is not in the file, and the reference's detectors have False"
    )
    assert said[1].endswith("the names of the classes are not in the file") and len(said) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.save(tmp_path / "x", format="native")


def test_an_encoder_alone_has_features(tmp_path):
    m = model("pretrain")
    alone = {"encoder": m.params["encoder"]}
    config = m.config.copy_and_resolve_references()
    config.task = "encoder"
    m = api.Model(api.Checkpoint(alone, config, (), ""))
    m.save(tmp_path / "x.pth", format="mcg")
    back = vm.load(tmp_path / "x.pth", num_heads=3)
    _, video = golden("pretrain")
    np.testing.assert_array_equal(back.features(video), model("pretrain").features(video))
    with pytest.raises(UserError, match="task 'encoder' has no decoder"):
        back.reconstruct(VIDEO, mask([1, 0, 0, 0]))


def test_a_clip_is_cropped_as_evaluation_does(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=60)
    sampler = PretrainSampler(frames=4, stride=3, height=32, width=48, channels=3, train=False)
    expected = sampler(Videos((path,), None, None, "one"), 0, None)
    clip = vm.read_clip(path, frames=4, stride=3, size=(32, 48))
    assert clip.shape == (4, 32, 48, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, expected)
    first = vm.read_clip(path, frames=2, stride=5, size=64, start=7)
    whole = read_frames(path, lambda count: np.array([7, 12]))
    np.testing.assert_array_equal(first, whole[:, :, 16:80])
    (tmp_path / "bad.mp4").write_text("not a video")
    with pytest.raises(UserError, match="cannot read .*bad.mp4: invalid data"):
        vm.read_clip(tmp_path / "bad.mp4")
    with pytest.raises(UserError, match="start 60: .* has frames 0 to 59"):
        vm.read_clip(path, start=60)
    with pytest.raises(UserError, match="stride 0: use 1 or more"):
        vm.read_clip(path, stride=0)


def test_functions_return_what_the_commands_write(classifier, tmp_path, capsys):
    folder, *_ = classifier
    (tmp_path / "list.csv").write_text(rows("val", KINDS, [0]))
    given = ["--checkpoint", str(folder), "--json", str(tmp_path / "x.json")]
    cli.main(["evaluate", "--manifest", str(tmp_path / "list.csv"), *given])
    written = json.loads((tmp_path / "x.json").read_text())
    model = vm.load(folder)
    found = vm.evaluate(model, tmp_path / "list.csv")
    assert (
        dataclasses.asdict(found.top1) == written["top1"] and found.protocol == written["protocol"]
    )
    assert found.probabilities.shape == (3, 3)

    clip = f"{CLIPS}/val/walk/walk_000.mp4"
    cli.main(["predict", clip, *given])
    (written,) = json.loads((tmp_path / "x.json").read_text())
    (video,) = vm.predict(folder, clip)
    assert [likely._asdict() for likely in video.top] == written["top"]
    assert len(video.windows) == len(written["windows"]) and video.error is None

    out = tmp_path / "x.npz"
    cli.main(["extract", clip, "--checkpoint", str(folder), "--out", str(out)])
    arrays, written = vm.extract(model, clip), dict(np.load(out))
    assert arrays.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(arrays[name], array)
    with pytest.raises(UserError, match="x.npz exists: give a new name"):
        vm.extract(model, clip, out=out)


def test_the_dtype_of_a_model_is_used_by_every_function(classifier, monkeypatch):
    folder, *_ = classifier
    clip = f"{CLIPS}/val/walk/walk_000.mp4"
    full, half = (vm.load(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    features = [vm.extract(model, clip, hop=99)["features"] for model in (full, half)]
    assert 1e-4 < relative_error(*features) < 0.1
    networks = []
    for name in ("evaluate", "predict"):
        monkeypatch.setattr(
            f"videomae_jax.inference.{name}.{name}",
            lambda network, *_, **options: networks.append(network) or [],
        )
    vm.evaluate(half, clip)
    vm.predict(half, clip)
    assert [network.run.dtype.name for network in networks] == ["bfloat16"] * 2


def test_a_model_reads_clips_of_its_own_geometry(classifier):
    folder, *_ = classifier
    model = vm.load(folder)
    video = model.read_clip(f"{CLIPS}/val/walk/walk_000.mp4")
    assert video.shape == (1, 4, 16, 16, 3)
    assert model.logits(video).shape == (1, 3)


def test_a_model_that_samples_sparsely_reads_the_whole_video(classifier, tmp_path):
    _, params, config = classifier
    config = config.copy_and_resolve_references()
    config.clip.sampling = "sparse"
    model = api.Model(Checkpoint(params, config, KINDS, ""), source="sparse model")
    path = write_video(tmp_path / "a.mp4", count=60)
    videos = Videos((path,), None, None, "one")
    expected = classify.eval_sampler(config)(videos, 0, None)
    np.testing.assert_array_equal(model.read_clip(path)[0], expected)
    with pytest.raises(UserError, match="start 3: clips of sparse model span whole videos"):
        model.read_clip(path, start=3)


def test_a_detector_reads_clips_by_its_rate(detector, tmp_path):
    _, params, config = detector
    config = config.copy_and_resolve_references()
    config.clip.update(frames=4, stride=2, rate=10.0)
    model = api.Model(Checkpoint(params, config, KINDS, ""), source="a detector")
    path = write_video(tmp_path / "a.mp4", count=60)  # 30 frames a second
    size = dict(size=(config.clip.height, config.clip.width), frames=4, stride=6)
    np.testing.assert_array_equal(
        model.read_clip(path, start=3)[0], vm.read_clip(path, start=3, **size)
    )
    # Offsets -4, -2, 0 and 2 of the key frame 30, as in training.
    np.testing.assert_array_equal(model.read_clip(path)[0], vm.read_clip(path, start=18, **size))
    with pytest.raises(UserError, match="start 60: .* has frames 0 to 59"):
        model.read_clip(path, start=60)


def test_the_public_names_are_listed():
    assert set(vm.__all__) == set(api.__all__) <= set(dir(vm))
    assert all(getattr(vm, name).__doc__ for name in vm.__all__)
    assert vm.UserError is UserError


def test_nothing_slow_is_imported_before_it_is_used():
    program = (
        "import sys; import videomae_jax as vm; vm.__version__\n"
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules)\n"
        "vm.load; assert 'jax' in sys.modules\n"
        "print({'torch', 'tensorflow', 'transformers', 'orbax', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "set()\n", done.stderr + done.stdout
