"""The ONNX file agrees with the model in ONNX Runtime, for any batch."""

import importlib.util
import json

import numpy as np
import pytest
from golden import DATA
from runs import fails

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.errors import UserError
from videomae_jax.interop import serving

FILES = {"pretrain": "pretrain_tiny.pth", "classify": "finetune_tiny_deepspeed.pth"}
HEADS = ["--num-heads=3", "--decoder-num-heads=2"]
# The extra is not one of `[test]`: it holds back orbax. tests/package/test_onnx.py installs it.
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None, reason="videomae_jax[onnx] is not installed"
)


@needs_extra
@pytest.mark.parametrize("task", ["classify", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_it_agrees_for_every_batch(task, tmp_path, clear_caches):
    import onnxruntime

    m = vm.load(DATA / FILES[task], num_heads=3, decoder_num_heads=2)
    video = np.random.default_rng(0).integers(0, 256, [3, 4, 32, 32, 3], np.uint8)
    names = ["features", "logits"] if task == "classify" else ["features"]
    expected = {name: np.asarray(getattr(m, name)(video)) for name in names}
    file = tmp_path / "model.onnx"
    cli.main(
        ["convert", str(DATA / FILES[task]), str(file), *HEADS, "--frames=4", "--image-size=32"]
    )

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings of constants that it does not need
    session = onnxruntime.InferenceSession(file, options)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("video", "tensor(uint8)", ["B", 4, 32, 32, 3])
    assert [made.name for made in session.get_outputs()] == names
    for batch in (1, 3):
        made = session.run(None, {"video": video[:batch]})
        for name, array in zip(names, made, strict=True):
            np.testing.assert_allclose(array, expected[name][:batch], rtol=1e-5, atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == list(m.labels)
    assert facts.get("probabilities") == ("softmax" if task == "classify" else None)
    # The exporter replaces functions of JAX while it works; afterwards they are themselves.
    clear_caches()
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(m, name)(video), array)


def test_a_missing_extra_and_large_weights_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "model.onnx"
    said = fails(capsys, "convert", DATA / FILES["classify"], file, *HEADS)
    assert "an ONNX file needs jax2onnx: pip install 'videomae_jax[onnx]'" in said
    monkeypatch.setattr(serving, "MAX_WEIGHTS", 1000)
    with pytest.raises(UserError, match="an ONNX file holds at most 0.00 GB"):
        vm.load(DATA / FILES["classify"], num_heads=3).save(file, format="onnx")
    assert not list(tmp_path.iterdir())
