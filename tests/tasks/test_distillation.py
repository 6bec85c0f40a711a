"""Fine-tuning from the answers of a teacher: the loss, any mesh, a run, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from runs import CLIPS, KINDS, fails, held_out, losses

from videomae_jax import cli
from videomae_jax.config import differences, load_config, load_recipe
from videomae_jax.data.videos import Videos
from videomae_jax.devices.sharding import batch_sharding, make_mesh, path_name
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import Checkpoint, save_checkpoint
from videomae_jax.interop.teacher import with_teacher
from videomae_jax.tasks import classify
from videomae_jax.tasks.distillation import taught_sums
from videomae_jax.tasks.task import Task, Teacher
from videomae_jax.tasks.teacher import stored_params, teacher_config
from videomae_jax.training.checkpoint import config_from_json, load_params, save_params
from videomae_jax.training.step import TrainState, jit_steps, put_teacher, train_step
from videomae_jax.training.workdir import check_same_model, read_metrics

STUDENT = [
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=16" for side in ("height", "width")),
    *(f"--config.clip.source_{side}=20" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.augment.operations=0",
    "--config.batch_size=16",
]


def student(*overrides):
    return load_config("finetune:tiny,custom", [*STUDENT, *map(str, overrides)])


def taught(path, *overrides):
    return with_teacher(student(f"--config.teacher={path}", *overrides))


def prepared(path, train, held=None, *overrides):
    return classify.prepare(taught(path, *overrides), train, held)


def videos(labels=None, names=None, name="list"):
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.ndim == 1:
        labels = labels.astype(np.int32)
    count = 2 if labels is None else len(labels)
    return Videos(tuple(map(str, range(count))), labels, names, name)


def linear_task() -> Task:
    """A linear classifier of ten numbers that learns from another, in any precision."""

    def logits(params, batch):
        return batch["video"] @ params["head"]["kernel"] + params["head"]["bias"]

    def init(key):
        kernel = jax.random.normal(key, (10, 4))  # float64 if JAX has that
        return {"head": {"kernel": kernel, "bias": kernel[0]}}

    def train_sums(params, batch, key, teacher):
        sums = taught_sums(
            classify.class_sums,
            logits(params, batch),
            logits(teacher, batch),
            batch["label"],
            probabilities=jax.nn.softmax,
        )
        return jax.tree.map(jnp.sum, sums)

    return Task(
        init=init,
        train_sums=train_sums,
        eval_sums=lambda params, batch, teacher: {},
        summarize=classify.summarize,
        pictures=lambda params, batch: {},
        samplers=lambda: None,
        check_clips=lambda clips: None,
        train_flops=0.0,
        summary={},
        teacher=Teacher(jax.eval_shape(init, jax.random.key(0)), 0.0),
    )


def test_float64_any_mesh_and_any_parts_are_one_device_and_the_formula():
    with jax.enable_x64(True):
        task = linear_task()
        rng = np.random.default_rng(0)
        batch = {"video": rng.normal(size=(32, 10)), "label": np.arange(32, dtype=np.int32) % 4}
        theirs = jax.device_get(task.init(jax.random.key(7)))

        def run(devices, parts, **axes):
            mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1) | axes, jax.devices()[:devices])
            with jax.set_mesh(mesh):
                steps = jit_steps(
                    task, optax.sgd(1.0), lambda _: 1.0, mesh, seed=0, accumulation=parts
                )
                teacher, _ = put_teacher(theirs, *steps.abstract_teacher)
                put = jax.device_put(batch, batch_sharding(mesh))
                state = steps.init()
                before = jax.device_get(state.params)
                state, metrics = steps.train(state, put, teacher)
                return before, jax.device_get((state.params, metrics)), teacher

        before, one, _ = run(1, 1)
        for case in (dict(devices=8, parts=1), dict(devices=8, parts=2, fsdp=2)):
            _, several, teacher = run(**case)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), one, several)
        assert teacher["head"]["kernel"].sharding.spec == P("fsdp", None)

        # Written out: the mean of -sum p log q, of which q - p is the gradient to the logits.
        ours, answers = (
            batch["video"] @ p["head"]["kernel"] + p["head"]["bias"] for p in (before, theirs)
        )
        log_q, log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (ours, answers))
        p = np.exp(log_p)
        params, metrics = one
        assert metrics["loss"] == pytest.approx(-(p * log_q).sum(-1).mean(), rel=1e-12)
        assert metrics["teacher_entropy"] == pytest.approx(-(p * log_p).sum(-1).mean(), rel=1e-12)
        same = (log_q.argmax(-1) == log_p.argmax(-1)).mean()
        right = (log_p.argmax(-1) == batch["label"]).mean()
        assert (metrics["top1_agreement"], metrics["teacher_top1"]) == (same, right)
        slope = (np.exp(log_q) - p).mean(0)
        step = params["head"]["bias"] - before["head"]["bias"]  # of SGD with a rate of -1
        np.testing.assert_allclose(step, slope, rtol=1e-10)


def test_the_teacher_has_no_gradient():
    task = linear_task()
    params = task.init(jax.random.key(1))
    zero = jnp.zeros([], jnp.int32)
    state = TrainState(zero, params, optax.sgd(1.0).init(params), zero)
    batch = {"video": jnp.ones([2, 10]), "label": jnp.zeros(2, jnp.int32)}

    def loss(teacher):
        options = dict(task=task, optimizer=optax.sgd(1.0), schedule=lambda _: 1.0, seed=0)
        new, metrics = train_step(state, batch, teacher, accumulation=1, **options)
        return metrics["loss"] + new.params["head"]["bias"].sum()

    slopes = jax.jit(jax.grad(loss))(task.init(jax.random.key(2)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_student_that_is_its_teacher_has_the_entropy_of_its_answers(
    classifier, multi_label, tmp_path
):
    folder, params, config = classifier
    config = config.copy_and_resolve_references()
    config.model.multi_label = multi_label
    save_params(str(tmp_path / "teacher"), params, config)
    config, *_ = prepared(tmp_path / "teacher", videos())
    assert config.model.multi_label == multi_label
    task = classify.build_task(config)
    batch = {"video": np.random.default_rng(0).integers(0, 256, (4, 4, 16, 16, 3), np.uint8)}
    sums = jax.jit(task.eval_sums)(params, batch, teacher=params)
    assert sums.keys() == {"error", "count", "teacher_entropy", "top1_agreement"}
    plain = config.copy_and_resolve_references()
    plain.teacher, plain.model.multi_label = "", True  # which has outputs
    plain_task = classify.build_task(plain.lock())
    sigmoid = np.float64(jax.jit(plain_task.outputs)(params, batch))
    if multi_label:
        answers = np.stack([sigmoid, 1 - sigmoid], -1)
        entropy = -(answers * np.log(answers)).sum(-1).mean(-1)
        both = jax.jit(task.outputs)(params, batch, teacher=params)
        np.testing.assert_array_equal(both[:, 0], both[:, 1])
    else:
        odds = sigmoid / (1 - sigmoid)
        answers = odds / odds.sum(-1, keepdims=True)
        entropy = -(answers * np.log(answers)).sum(-1)
    assert entropy.std() > 0.01  # clips differ
    np.testing.assert_allclose(sums["error"], entropy, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(sums["error"], sums["teacher_entropy"])
    assert (sums["top1_agreement"] == 1).all()
    # The least loss there is.
    slope = jax.grad(lambda p: task.eval_sums(p, batch, teacher=params)["error"].sum())
    assert all(abs(leaf).max() < 1e-4 for leaf in jax.tree.leaves(jax.jit(slope)(params)))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A folder of unlabelled clips, and a labelled list to hold out."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for kind in KINDS:
        for number in range(6):
            shutil.copy(CLIPS / f"train/{kind}/{kind}_{number:03d}.mp4", folder)
    held = folder.with_suffix(".csv")
    held.write_text("\n".join(f"{CLIPS}/val/{k}/{k}_000.mp4 {k}" for k in KINDS))
    return [f"--config.data.train={folder}", f"--config.data.eval={held}"]


def command(workdir, *more, steps=4):
    given = ["--config.lr=1e-3", "--config.base_lr=0", "--config.log_every=1"]
    return [
        *("train", "--config=finetune:tiny,custom", f"--workdir={workdir}", *STUDENT, *given),
        *(f"--config.steps={steps}", "--config.save_every=2", *map(str, more)),
    ]


@pytest.mark.slow
def test_a_run_on_unlabelled_videos_that_resumes_bit_for_bit(
    classifier, unlabelled, tmp_path, capsys
):
    folder, params, _ = classifier
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(folder, teacher)
    given = [f"--config.teacher={teacher}", "--config.ema_decay=0.5", *unlabelled]
    cli.main(command(run, *given))
    said = capsys.readouterr().out
    assert f"teacher    {teacher}, 1 blocks of width 128, 0.2481 M parameters in float32" in said
    assert "jump, roll, walk (training videos have no labels)" in said
    (row,) = held_out(run)
    names = {"loss", "top1", "top1_agreement", "ema_loss", "ema_top1", "teacher_top1"}
    assert {f"eval/{name}" for name in names} <= row.keys()
    assert "eval/ema_teacher_top1" not in row  # it is the same
    assert row["eval/loss"] >= row["eval/teacher_entropy"]
    assert "top1" not in read_metrics(run)[0]
    _, config = load_params(str(run))
    assert config.data.class_names == KINDS and config.teacher_model.model.classes == 3
    before, every = held_out(run), losses(run)
    shutil.rmtree(run / "checkpoints/4")
    cli.main(command(run, *given))
    said = capsys.readouterr().out
    assert "going on from step 2" in said and "changed" not in said
    assert (losses(run), held_out(run)) == (every, before)

    # A run that goes on needs the teacher that it had, wherever that is.
    shutil.rmtree(run / "checkpoints/4")
    said = fails(capsys, *command(run, *given[1:]))
    assert f"learns from a teacher, and config.teacher is not set: give {given[0]}" in said
    teacher.rename(tmp_path / "moved")
    said = fails(capsys, *command(run, *given))
    assert f"config.teacher: {teacher} does not exist" in said
    cli.main(command(run, *given, f"--config.teacher={tmp_path}/moved"))
    assert f"changed: teacher '{teacher}' -> '{tmp_path}/moved'" in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints/4")
    params["head"]["bias"] = params["head"]["bias"] + 1
    save_params(str(teacher), params, load_params(str(folder))[1])
    said = fails(capsys, *command(run, *given))
    assert "another teacher: its weights have changed since: use another --workdir, or" in said


def test_a_run_goes_on_only_with_the_teacher_that_it_has(classifier):
    without, first = student(), taught(classifier[0]).unlock()
    first.teacher_model.digest = 1
    other = first.copy_and_resolve_references()
    other.teacher, other.teacher_model.digest = "other", 2
    for old, new, words in (
        (without, first, f"none, the config says {classifier[0]}: use"),
        (first, without, f"{classifier[0]}, the config says none: use"),
        (first, other, f"{classifier[0]}, the config says other: use"),
    ):
        with pytest.raises(UserError, match=f"run holds .* another teacher, {words}"):
            check_same_model(differences(old, new), workdir="run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "parts", "axes"), [(8, 1, dict(fsdp=2, tensor=2)), (2, 2, {})], ids=str
)
def test_other_meshes_and_parts_compute_what_one_device_does(classifier, devices, parts, axes):
    folder, params, _ = classifier
    # Parts mix other clips with each other.
    mix = [] if devices == 8 else ["--config.augment.mixup=0", "--config.augment.cutmix=0"]
    config, *_ = prepared(folder, videos(), None, "--config.drop_path=0.1", *mix)
    task = classify.build_task(config)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (32, 4, 20, 20, 3), np.uint8),
        "row": np.arange(32, dtype=np.int32),
        "size": np.full((32, 2), 20, np.int32),
    }

    def run(devices, parts=1, **axes):
        mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1) | axes, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            steps = jit_steps(task, optax.sgd(1.0), lambda _: 0.1, mesh, seed=0, accumulation=parts)
            teacher, _ = put_teacher(params, *steps.abstract_teacher)
            put = jax.device_put(batch, batch_sharding(mesh))
            state, metrics = steps.train(steps.init(), put, teacher)
            return jax.device_get((state.params, metrics))

    one, other = run(1), run(devices, parts, **axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), one, other)


def test_the_teacher_may_have_another_size_patch_and_format(tmp_path):
    other = ["--config.model.classes=3", "--config.clip.height=24", "--config.clip.width=24"]
    other += ["--config.model.patch=(2,6,6)", "--config.clip.frames=4"]
    other += ["--config.model.encoder.width=64"]
    config = load_config("finetune:tiny,custom", [*other, f"--config.data.class_names={KINDS}"])
    params = classify.build_task(config).init(jax.random.key(3))
    save_checkpoint(str(tmp_path / "hf"), Checkpoint(params, config, KINDS, ""), to="hf")
    size = ["--config.clip.height=48", "--config.clip.width=48"]
    size += ["--config.clip.source_height=48", "--config.clip.source_width=48"]
    own, *_ = prepared(tmp_path / "hf", videos(), None, *size)
    assert own.data.class_names == KINDS and own.model.patch == (2, 8, 8)
    # Its positions are those it was trained with.
    assert teacher_config(own).model.position_grid == (2, 4, 4)
    task = classify.build_task(own)
    assert "4 blocks of width 64" in task.summary["teacher"]
    batch = {"video": np.full((1, 4, 48, 48, 3), 99, np.uint8)}
    sums = jax.eval_shape(lambda p: task.eval_sums(p, batch, teacher=params), params_of(task))
    assert sums["error"].shape == (1,)
    # Its cost is counted.
    plain = own.copy_and_resolve_references()
    plain.teacher = ""
    plain = classify.build_task(plain.lock())
    assert task.train_flops == plain.train_flops + task.teacher.flops
    assert 2 * task.teacher.flops > plain.train_flops / 3  # of twice as many tokens


def params_of(task):
    return jax.eval_shape(task.init, jax.random.key(0))


def test_only_the_matrices_of_the_encoder_are_stored_in_the_compute_dtype(classifier):
    folder, params, _ = classifier
    config, *_ = prepared(folder, videos(), None, "--config.run.dtype=bfloat16")
    teacher = classify.build_task(config).teacher.params
    for path, leaf in jax.tree_util.tree_leaves_with_path(teacher):
        name = path_name(path)
        matrix = name.startswith("encoder/") and leaf.ndim > 1 and "norm" not in name
        matrix = matrix and not name.endswith("bias")
        assert (leaf.dtype == jnp.bfloat16) == matrix, name
    assert jax.tree.structure(teacher) == jax.tree.structure(params)
    whole = stored_params(params, jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(whole)} == {"float32"}


def test_a_teacher_that_does_not_remember_is_executed_without_remat(classifier):
    config = taught(classifier[0], "--config.run.remat=full", "--config.run.attention=xla")
    assert teacher_config(config).run.to_dict() == {**config.run.to_dict(), "remat": "none"}


def test_classes_are_those_of_the_teacher(classifier):
    folder = classifier[0]
    for train in (videos(), videos([0, 1]), videos([1, 0], ("walk", "jump"))):
        config, numbered, held = prepared(folder, train, videos([0, 0], ("roll",)))
        assert config.model.classes == 3 and config.data.class_names == KINDS
        assert held.labels.tolist() == [1, 1]
        assert numbered.labels is None or numbered.labels.tolist() == [0, 1] or train.class_names
    assert numbered.labels.tolist() == [0, 2]  # jump, walk
    config, _, held = prepared(folder, videos(), videos())
    assert held.labels is None


def test_a_teacher_without_names_has_those_of_the_data(classifier, tmp_path):
    _, params, config = classifier
    config = config.copy_and_resolve_references()
    config.data.class_names = ()
    save_params(str(tmp_path), params, config)
    config, train, _ = prepared(tmp_path, videos([0, 1, 2], ("a", "b", "c")))
    assert config.data.class_names == ("a", "b", "c")
    assert "taken to be those of the data" in classify.build_task(config).summary["teacher"]
    config, train, _ = prepared(tmp_path, videos(), videos([0, 1, 2], ("a", "b", "c")))
    assert config.data.class_names == ("a", "b", "c")
    with pytest.raises(UserError, match="list has 2 classes, the teacher .* 3 without names"):
        prepared(tmp_path, videos([0, 1], ("a", "b")))


@pytest.mark.parametrize(
    ("train", "held", "overrides", "words"),
    [
        (videos([0, 3]), None, [], "label 3, the teacher .* has the labels 0 to 2: use its"),
        (videos([0], ("rol",)), None, [], "not among the 3 of the teacher .*mean 'roll'"),
        (videos(), videos([0], ("rol",), "val"), [], "val has 1 classes .* 3 of the teacher"),
        (videos(), None, ["--config.model.classes=4"], "classes is 4, the teacher .* has 3"),
        (videos(), None, ["--config.data.class_names=('a','b','c')"], "begin with jump, roll"),
        (videos(), None, ["--config.clip.frames=8"], "sees 4 frames, clip.frames is 8: use"),
        (
            videos(),
            None,
            ["--config.model.mean=(.5,)", "--config.model.std=(.5,)"],
            "sees 3 channels, model.mean has 1: give 3 numbers",
        ),
        (videos(), None, ["--config.clip.height=20"], "the teacher .*: height 20 is not a mult"),
        (videos(np.ones((2, 3), bool)), None, [], "list has several labels a video, the teacher"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(classifier, train, held, overrides, words):
    with pytest.raises(UserError, match=words) as error:
        prepared(classifier[0], train, held, *overrides)
    assert str(error.value).count("\n") == 0


@pytest.mark.slow
def test_a_teacher_of_another_kind_is_refused(classifier, detector, pretrained, tmp_path):
    probe = load_recipe("probe", "linear,tiny,custom", ["--config.model.classes=3"])
    save_params(str(tmp_path / "probe"), {"heads": {"query": np.zeros(3, np.float32)}}, probe)
    for path, kind in ((pretrained, "a pre-training"), (tmp_path / "probe", "a probe")):
        frames = "--config.clip.frames=16" if "probe" in path.name else "--config.clip.frames=4"
        with pytest.raises(UserError, match=f"is {kind}, it gives clips no classes"):
            prepared(path, videos(), None, frames)
    with pytest.raises(UserError, match="is a detector, it gives clips no classes"):
        prepared(detector[0], videos())
    with pytest.raises(UserError, match="config.teacher: no checkpoint in"):
        taught(tmp_path)


def test_a_config_of_an_older_run_has_no_teacher():
    for recipe in ("finetune:tiny,custom", "pretrain:tiny,custom"):
        config = load_config(recipe)
        old = json.loads(config.to_json())
        del old["teacher"], old["teacher_model"]
        assert config_from_json(old) == config_from_json(json.loads(config.to_json()))
