"""Token merging in the commands and the Python interface: agreement, results, and mistakes."""

import json

import numpy as np
import pytest
from runs import CLIPS, fails

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.data.sources import read_videos
from videomae_jax.errors import UserError
from videomae_jax.inference import merging


def test_an_evaluation_prints_how_it_agrees_with_the_unmerged_model(
    classifier, unreadable_list, tmp_path, capsys
):
    folder, *_ = classifier
    out, file = tmp_path / "out", tmp_path / "result.json"
    command = ["evaluate", "--checkpoint", folder, "--manifest", unreadable_list, "--out", out]
    command = [*map(str, command), "--views=1x1"]
    cli.main([*command, "--merge-tokens=3", "--json", str(file)])
    said, result = capsys.readouterr().out, json.loads(file.read_text())
    found = result["merging"]
    assert f"the same top-1 as without for {found['same']} of 8 videos (one clip each)" in said
    assert found["videos"] == 8 and 0.5 < found["cosine"] < 1.0001
    assert "3 tokens merged in each block" in result["protocol"]
    assert "holds results of merge-tokens 3, this command has None" in fails(capsys, *command)


@pytest.mark.slow
def test_the_agreement_is_that_of_the_python_interface(classifier, monkeypatch):
    monkeypatch.setattr(merging, "VIDEOS", 3)
    folder, _, config = classifier
    videos = read_videos(CLIPS / "val/walk")
    m, plain = vm.load(folder, merge_tokens=3), vm.load(folder)
    found = merging.measure_agreement(m._network, m.params, config, videos)
    assert found.videos == 3
    step = -(-len(videos) // 3)
    clips = np.concatenate([m.read_clip(path) for path in videos.paths[::step]])
    a, b = np.asarray(m.features(clips)), np.asarray(plain.features(clips))
    assert np.abs(a - b).max() > 1e-4
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    assert found.cosine == pytest.approx(((a * b).sum(1) / norms).mean(), abs=1e-5)
    tops = [np.asarray(model.logits(clips)).argmax(1) for model in (m, plain)]
    assert found.same == (tops[0] == tops[1]).sum()
    rows = vm.extract(m, videos.paths[0], hop=100)
    np.testing.assert_allclose(
        rows["features"][0], m.features(m.read_clip(videos.paths[0], start=0))[0], atol=1e-5
    )
    with pytest.raises(UserError, match="merges tokens: load it without"):
        m.tokens(clips)


def test_other_models_and_pools_are_refused(classifier, detector, tmp_path, capsys):
    folder, *_ = classifier
    video, out = CLIPS / "val/walk/walk_000.mp4", f"--out={tmp_path}/x.npz"
    command = ["extract", video, "--checkpoint", folder, out, "--merge-tokens=3"]
    assert "--pool time has every token: use --pool clip" in fails(capsys, *command, "--pool=time")
    command[3] = detector[0]
    assert "for fine-tuned classifiers, this is a model of task detect" in fails(capsys, *command)
    command = ["predict", video, "--checkpoint", folder]
    said = fails(capsys, *command, "--merge-tokens=5")
    assert "5 of 8 tokens cannot be merged in a block: use 0 to 4" in said
    assert "'0' is not 1 or more" in fails(capsys, *command, "--merge-tokens=0")
