"""Pre-training, fine-tuning and prediction in three commands, with one geometry."""

import shutil

import jax
import numpy as np
import pytest
from golden import DATA
from runs import CLIPS, KINDS, fails, losses

from videomae_jax import cli
from videomae_jax.config import load_config_and_given
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import (
    load_checkpoint,
    read_geometry,
    save_checkpoint,
)
from videomae_jax.interop.init_from import with_source_geometry
from videomae_jax.tasks import TASKS, build
from videomae_jax.tasks.geometry import geometry_of
from videomae_jax.training.checkpoint import load_params, load_run_config
from videomae_jax.training.transfer import transfer_encoder


def started_from(path, recipe, *overrides):
    flags = [f"--config.init_from={path}", *overrides]
    return with_source_geometry(*load_config_and_given(recipe, flags))


@pytest.mark.slow
def test_three_commands_without_a_geometry(pretrained, labelled, tmp_path, capsys, monkeypatch):
    start, workdir = tmp_path / "start", tmp_path / "run"
    shutil.copytree(pretrained, start)
    command = ["train", "--config=finetune:tiny,custom", f"--workdir={workdir}", *labelled]
    command += [f"--config.init_from={start}", "--config.steps=2", "--config.save_every=1"]
    # Without RandAugment, which takes as long to compile as all the rest.
    command += ["--config.log_every=1", "--config.augment.operations=0"]
    cli.main(command)
    said = capsys.readouterr().out
    assert f"geometry of {start}: model.encoder.depth 4 -> 1, clip.frames 16 -> 4" in said
    assert geometry_of(load_run_config(str(workdir))) == geometry_of(
        load_run_config(str(pretrained))
    )
    before, all_losses = load_params(str(workdir))[0], losses(workdir)

    video = f"{CLIPS}/val/{KINDS[0]}/{KINDS[0]}_000.mp4"
    cli.main(["predict", video, "--checkpoint", str(workdir)])
    assert any(kind in capsys.readouterr().out for kind in KINDS)

    # The same command resumes, bit for bit, by its own stored config: the source is gone, and the
    # size of the videos is not looked at again.
    monkeypatch.setattr(build, "read_sizes", lambda *_: {})
    shutil.rmtree(start)
    shutil.rmtree(workdir / "checkpoints/2")
    cli.main(command)
    said = capsys.readouterr().out
    assert f"geometry of {workdir}: " in said and "going on from step 1" in said
    assert "changed" not in said
    jax.tree.map(np.testing.assert_array_equal, before, load_params(str(workdir))[0])
    assert losses(workdir) == all_losses


def test_a_plan_has_the_geometry_of_the_run(pretrained, labelled, tmp_path, capsys):
    command = ["--config=probe:linear,s,custom", f"--config.init_from={pretrained}", *labelled]
    command += ["--config.model.classes=3"]
    cli.main(["plan", *command])
    said = capsys.readouterr().out
    assert "model.encoder.width 384 -> 128" in said
    cli.main(["train", "--plan", f"--workdir={tmp_path}/none", *command])
    assert capsys.readouterr().out == said


def test_pretraining_keeps_its_geometry(pretrained):
    config = started_from(pretrained, "pretrain:s,custom")
    assert config.model.encoder.width == 384 and config.clip.frames == 16


def test_a_contradiction_ends_in_one_line(pretrained, labelled, tmp_path, capsys):
    command = ["train", "--config=finetune:tiny,custom", f"--workdir={tmp_path}", *labelled]
    command += [f"--config.init_from={pretrained}"]
    assert "another model" in fails(capsys, *command, "--config.model.patch=(2,4,4)")
    said = fails(capsys, *command, "--config.model.encoder.width=30")
    assert "model.encoder.width 30 does not divide by 4 heads" in said
    with pytest.raises(UserError, match="none does not exist"):
        started_from("none", "finetune:tiny,custom")


@pytest.mark.parametrize("file", ["pretrain_tiny", "finetune_tiny_deepspeed"])
def test_foreign_files_say_all_but_the_stride(file, tmp_path):
    heads = dict(num_heads=3, decoder_num_heads=2)
    checkpoint = load_checkpoint(str(DATA / f"{file}.pth"), frames=8, image_size=64, **heads)
    said = geometry_of(checkpoint.config)
    save_checkpoint(str(tmp_path / "native"), checkpoint, to="native")
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    assert read_geometry(str(tmp_path / "native")) == said
    del said["clip.stride"]
    assert read_geometry(str(tmp_path / "hf")) == said
    config = started_from(tmp_path / "hf", "finetune:b,hmdb51")
    assert geometry_of(config) == said | {"clip.stride": 2}
    with pytest.raises(UserError, match="give --num-heads"):
        read_geometry(str(DATA / f"{file}.pth"))


HEADS = {
    "pretrain_tiny": dict(num_heads=3, decoder_num_heads=2),
    "finetune_tiny_deepspeed": dict(num_heads=3),
    "detect_tiny": dict(num_heads=2),
}


@pytest.mark.parametrize(
    "file, to",
    [("pretrain_tiny", "native"), ("pretrain_tiny", "hf"), ("detect_tiny", "native")]
    + [("finetune_tiny_deepspeed", "native"), ("finetune_tiny_deepspeed", "hf")],
)
@pytest.mark.parametrize("data", ["ava", "custom"])
def test_a_detector_starts_from_any_released_model(tmp_path, file, to, data):
    source = str(tmp_path / "source")
    checkpoint = load_checkpoint(str(DATA / f"{file}.pth"), frames=8, image_size=64, **HEADS[file])
    save_checkpoint(source, checkpoint, to=to)
    config = started_from(source, f"detect:b,{data}", "--config.model.classes=5")
    said, recipe = geometry_of(checkpoint.config), load_config_and_given(f"detect:b,{data}").config
    for key in ("model.encoder.width", "model.patch", "clip.frames", "clip.height", "clip.width"):
        assert geometry_of(config)[key] == said[key]
    # AVA has statistics of its own; other recipes take those of the checkpoint.
    mean = (recipe if data == "ava" else checkpoint.config).model.mean
    assert config.model.mean == mean and config.roi == recipe.roi

    pretrained = load_checkpoint(source).params
    fresh = jax.eval_shape(TASKS["detect"].build_task(config).init, jax.random.key(0))
    params, table = transfer_encoder(pretrained, fresh)
    norm, head = [("encoder/norm/bias", "encoder/norm/scale"), ("head/bias", "head/kernel")]
    if "finetune" in file:
        assert set(table.fresh) == {*norm, *head}
        assert set(table.left_out) == {"fc_norm/bias", "fc_norm/scale", *head}
    else:
        assert set(norm) <= set(table.matched) and set(table.fresh) == set(head)
        loaded, source = (tree["encoder"]["norm"]["scale"] for tree in (params, pretrained))
        assert np.array_equal(loaded, source)
    assert params["head"]["kernel"].shape == (said["model.encoder.width"], 5)
