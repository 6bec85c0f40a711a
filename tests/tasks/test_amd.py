"""AMD: one result on any mesh, teachers of every kind, and what starts from the result."""

import jax
import numpy as np
import pytest
from runs import fails

from videomae_jax import cli
from videomae_jax.config import load_config, load_config_and_given
from videomae_jax.data.sources import read_videos
from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import batch_sharding, make_mesh
from videomae_jax.errors import UserError
from videomae_jax.inference.visualize import check_decoder
from videomae_jax.interop.checkpoint_files import load_checkpoint, save_checkpoint
from videomae_jax.interop.init_from import with_source_geometry
from videomae_jax.interop.teacher import load_teacher, with_teacher
from videomae_jax.tasks import amd, classify, pretrain
from videomae_jax.training.checkpoint import save_params
from videomae_jax.training.optim import Schedule, base_optimizer, warmup_cosine
from videomae_jax.training.step import jit_steps
from videomae_jax.training.transfer import transfer_encoder
from videomae_jax.training.workdir import read_metrics

STEPS = 3
CLIP = ["--config.clip.frames=4", "--config.clip.height=32", "--config.clip.width=32"]
STUDENT = [
    *CLIP,
    "--config.model.encoder.depth=2",
    "--config.model.decoder.depth=1",
    "--config.batch_size=8",
    "--config.repeats=2",
    "--config.run.scan=True",  # compiles fast
]
# Wider and deeper than the student.
LARGER = [
    "--config.model.encoder.width=192",
    "--config.model.encoder.mlp_width=256",
    "--config.model.encoder.depth=3",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A pre-trained model with random weights, whose pixel statistics are not the student's."""
    folder = tmp_path_factory.mktemp("teacher")
    more = ["--config.model.decoder.depth=1", "--config.model.mean=(0.5,0.5,0.5)"]
    config = load_config("pretrain:tiny,custom", [*CLIP, *LARGER, *more])
    save_params(str(folder), pretrain.build_task(config).init(jax.random.key(7)), config)
    return folder


@pytest.fixture(scope="module")
def tuned_teacher(tmp_path_factory):
    """A fine-tuned model, which has no final norm and no decoder."""
    folder = tmp_path_factory.mktemp("tuned")
    config = load_config("finetune:tiny,custom", [*CLIP, *LARGER, "--config.model.classes=3"])
    save_params(str(folder), classify.build_task(config).init(jax.random.key(8)), config)
    return folder


def load(teacher, *overrides):
    flags = [*STUDENT, f"--config.teacher={teacher}", *overrides]
    return with_teacher(load_config("pretrain:tiny,custom,amd", flags))


def run(config, mesh, devices=None):
    """Train on synthetic clips; returns the metrics of each step and the last state."""
    task = amd.build_task(config)
    clips, found = config.batch_size * config.repeats, []
    batches = synthetic_batches(shape=(4, 32, 32, 3), batch_size=clips, seed=0, num_steps=STEPS)
    mesh = make_mesh(mesh, devices)
    with jax.set_mesh(mesh):
        steps = jit_steps(
            task,
            base_optimizer(config),
            warmup_cosine(Schedule(STEPS, 1, 1e-3, 0.0)),
            mesh,
            seed=0,
            accumulation=config.accumulation,
        )
        frozen = load_teacher(config, steps)
        state = steps.init()
        with DevicePrefetcher(batches, sharding=batch_sharding(mesh)) as feed:
            for batch in feed:
                state, metrics = steps.train(state, batch, *frozen)
                found.append({name: float(value) for name, value in metrics.items()})
        return found, jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def one_device(teacher):
    return run(load(teacher), dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])


@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_terms_and_the_first_of_a_step(one_device):
    found, _ = one_device
    for row in found:
        terms = row["pixels"] + row["direct"] + row["generated"]
        assert row["loss"] == pytest.approx(terms, rel=1e-5) and row["direct"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [(dict(data=2, fsdp=2, tensor=2), 2), (dict(data=4, fsdp=2, tensor=1), 1)],
    ids=str,
)
def test_eight_devices_and_parts_compute_what_one_device_does(
    teacher, one_device, mesh, accumulation
):
    devices = jax.devices()[: mesh["data"] * mesh["fsdp"] * mesh["tensor"]]
    config = load(teacher, f"--config.accumulation={accumulation}")
    found, state = run(config, mesh, devices)
    for ours, theirs in zip(found, one_device[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_held_out_clips_have_the_losses_too(teacher):
    config = load(teacher)
    task = amd.build_task(config)
    params = load_checkpoint(str(teacher)).params
    (batch,) = synthetic_batches(shape=(4, 32, 32, 3), batch_size=2, seed=0, num_steps=1)
    sums = jax.jit(task.eval_sums)(task.init(jax.random.key(0)), batch, teacher=params)
    assert sums["direct"].shape == (2,) and (np.asarray(sums["generated"]) > 0).all()
    # The pixels are those of the pre-training task.
    plain = pretrain.build_task(config)
    same = jax.jit(plain.eval_sums)(task.init(jax.random.key(0)), batch)
    np.testing.assert_allclose(sums["pixels"], same["error"], rtol=1e-5)


@pytest.mark.slow
def test_a_fine_tuned_teacher_serves_with_its_encoder(tuned_teacher):
    config = load(tuned_teacher)
    assert config.teacher_model.task == "classify"
    assert set(amd.build_task(config).teacher.params) == {"encoder"}
    found, _ = run(config, dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    assert np.isfinite([row["loss"] for row in found]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher=", "the recipe amd learns from a trained model: give --config.teacher="),
        ("clip.frames=8", "clip.frames 4 and the student clip.frames 8: .* --config.clip.frames=4"),
        ("model.patch=(2,16,16)", r"same patches, use --config.model.patch=\(2,8,8\)"),
        ("model.encoder.depth=1", "the student has 1 block, features after half of them"),
        ("model.mean=(0.5,) model.std=(0.5,)", "sees 3 channels, model.mean has 1"),
        (
            "mask.teacher_ratio=0.9",
            "shows the teacher 4 tokens, and mask.ratio 0.9 the student 4: use less",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teacher, override, words):
    with pytest.raises(UserError, match=words):
        flags = [f"--config.{part}" for part in override.split()]
        config, _, _ = amd.prepare(load(teacher, *flags), None, None)
        amd.build_task(config)


def test_other_recipes_name_the_one_that_has_a_teacher():
    config = load_config("pretrain:tiny,custom", ["--config.teacher=runs/large"])
    with pytest.raises(UserError, match="use --config=pretrain:SIZE,DATA,amd"):
        pretrain.prepare(config, None, None)
    with pytest.raises(UserError, match="'amd' has no numbers for l,ssv2: use s, b, tiny with"):
        load_config("pretrain:l,ssv2,amd")


def test_the_numbers_of_amd():
    c = load_config("pretrain:b,ssv2,amd")
    assert (c.batch_size, c.repeats, c.epochs, c.warmup_epochs) == (512, 4, 200, 10)
    assert (c.base_lr, c.min_lr, c.optimizer.clip_norm, c.optimizer.b2) == (
        1.2e-3,
        1e-5,
        0.02,
        0.95,
    )
    assert (c.mask.ratio, c.mask.teacher_ratio, c.model.decoder.depth) == (0.9, 0.75, 4)
    assert c.clip.stride == 2 and load_config("pretrain:s,k400,amd").clip.stride == 4


def test_the_operations_with_a_large_teacher():
    large = load_config("pretrain:l,ssv2")
    config = load_config("pretrain:b,ssv2,amd", ["--config.teacher=l"]).unlock()
    config.teacher_model = dict(
        task="pretrain", model=large.model.to_dict(), clip=large.clip.to_dict(), class_names=()
    )
    task = amd.build_task(config.lock())
    # 392 tokens through ViT-L: 2 x 303 M weights each, and the attention.
    assert task.teacher.flops == pytest.approx(2 * 303e6 * 392, rel=0.07)
    assert task.train_flops > pretrain.build_task(config).train_flops + task.teacher.flops
    assert "24 blocks of width 1024" in task.summary["teacher"]
    assert "392 tokens" in task.summary["teacher"]
    assert "direct features of 160 tokens" in task.summary["loss"]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, teacher, one_device):
    """A work directory with the last weights."""
    workdir = tmp_path_factory.mktemp("distilled")
    save_params(str(workdir), one_device[1].params, load(teacher))
    return workdir


@pytest.mark.slow
def test_what_starts_from_it_leaves_the_heads_out(distilled, tmp_path):
    checkpoint = load_checkpoint(str(distilled))
    check_decoder(checkpoint.params, "it")
    flags = [f"--config.init_from={distilled}", "--config.model.classes=3"]
    config = with_source_geometry(*load_config_and_given("finetune:tiny,custom", flags))
    fresh = jax.eval_shape(classify.build_task(config).init, jax.random.key(0))
    _, table = transfer_encoder(checkpoint.params, fresh)
    assert not table.unexpected and "feature_heads/half/mask_token" in table.left_out
    # In the formats of others it is a pre-training model with its decoder.
    save_checkpoint(str(tmp_path / "x.safetensors"), checkpoint, to="safetensors")
    read = load_checkpoint(str(tmp_path / "x.safetensors"), num_heads=4, decoder_num_heads=2)
    assert read.config.task == "pretrain" and set(read.params) == set(checkpoint.params) - {
        "feature_heads"
    }
    jax.tree.map(
        np.testing.assert_array_equal, read.params["encoder"], checkpoint.params["encoder"]
    )


@pytest.mark.slow
def test_a_run_and_the_commands_after_it(labelled, teacher, tmp_path, capsys):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    command = ["train", "--config=pretrain:tiny,custom,amd", f"--workdir={run}", *labelled]
    command += [*STUDENT, "--config.repeats=1", "--config.log_every=1"]
    said = fails(capsys, *command, "--config.steps=3", "--config.warmup_steps=1")
    assert "give --config.teacher=CHECKPOINT" in said
    command += [f"--config.teacher={teacher}", "--config.warmup_steps=1"]
    cli.main([*command, "--config.steps=2"])
    assert "3 blocks of width 192" in capsys.readouterr().out
    assert {"loss", "pixels", "direct", "generated", "r2"} <= set(read_metrics(run)[0])
    assert "eval/direct" in read_metrics(run)[-1]
    cli.main([*command, "--config.steps=3"])  # resumes, and reads the teacher again
    assert "step 3/3" in capsys.readouterr().out
    command = ["train", "--config=finetune:tiny,custom", f"--workdir={tuned}", *labelled]
    plain = "--config.augment.operations=0"
    cli.main([*command, f"--config.init_from={run}", "--config.steps=2", plain])
    assert "feature_heads/full/projection/kernel" in capsys.readouterr().out
    for to in ("hf", "stablehlo"):
        cli.main(["convert", str(run), str(tmp_path / to), "--to", to])
    videos, features = labelled[1].partition("=")[2], tmp_path / "features.npz"
    cli.main(["extract", videos, "--checkpoint", str(run), "--out", str(features)])
    assert set(np.load(features)["video"]) == set(range(len(read_videos(videos))))
