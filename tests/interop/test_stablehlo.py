"""The exported function agrees with the model, for any batch, without this package."""

import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from golden import DATA

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.errors import UserError
from videomae_jax.interop import serving

FILES = {"pretrain": "pretrain_tiny.pth", "classify": "finetune_tiny_deepspeed.pth"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Folders of the exported models by task."""
    root = tmp_path_factory.mktemp("served")
    heads = ["--num-heads", "3", "--decoder-num-heads", "2"]
    flags = ["--to", "stablehlo", "--frames", "4", "--image-size", "32", *heads]
    for task, file in FILES.items():
        cli.main(["convert", str(DATA / file), str(root / task), *flags])
    return {task: root / task for task in FILES}


@pytest.mark.parametrize("task", FILES)
def test_it_reloads_and_agrees_for_every_batch(served, task):
    signature = json.loads((served[task] / "model.json").read_text())
    assert signature["input"] == {"video": {"dtype": "uint8", "shape": ["B", 4, 32, 32, 3]}}
    features = {"features": {"dtype": "float32", "shape": ["B", 48]}}
    logits = {"logits": {"dtype": "float32", "shape": ["B", 10]}}
    assert signature["outputs"] == (features if task == "pretrain" else features | logits)

    exported = jax.export.deserialize((served[task] / "model.stablehlo").read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    m = vm.load(DATA / FILES[task], num_heads=3, decoder_num_heads=2)
    video = np.random.default_rng(0).integers(0, 256, [3, 4, 32, 32, 3], np.uint8)
    expected = {name: getattr(m, name)(video) for name in signature["outputs"]}
    for batch in (1, 3):
        made = exported.call(video[:batch])
        for name, array in expected.items():
            np.testing.assert_allclose(made[name], array[:batch], rtol=1e-5, atol=1e-6)


def test_it_needs_nothing_but_jax(served):
    program = (
        "import sys, jax, jax.export, numpy\n"
        "served = jax.export.deserialize(open('model.stablehlo', 'rb').read())\n"
        "print(served.call(numpy.zeros([2, 4, 32, 32, 3], 'uint8'))['logits'].shape)\n"
        "assert not {'flax', 'videomae_jax'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=served["classify"], capture_output=True, text=True)
    assert done.stdout == "(2, 10)\n", done.stderr


def test_weights_too_large_for_the_format_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "MAX_WEIGHTS", 1000)
    m = vm.load(DATA / FILES["classify"], num_heads=3)
    with pytest.raises(UserError, match="at most 0.00 GB"):
        m.save(tmp_path / "served", format="stablehlo")
    assert not list(tmp_path.iterdir())
