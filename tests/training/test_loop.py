"""Whole runs on real clips, through the command line: results, resumes, signals, mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from runs import CLIPS, ROOT, SMALL, fails, held_out, losses

from videomae_jax import cli
from videomae_jax.devices.chips import peak_flops
from videomae_jax.errors import UserError
from videomae_jax.training import loop
from videomae_jax.training.checkpoint import Checkpoints, digests, load_params
from videomae_jax.training.monitor import Monitor
from videomae_jax.training.workdir import check_same_model, read_metrics


@pytest.fixture(scope="session")
def manifests(tmp_path_factory):
    """Sixteen clips to train on and three to hold out, of the demo's."""
    folder = tmp_path_factory.mktemp("manifests")
    for name, kinds, numbers in (("train", 4, 4), ("val", 3, 1)):
        kinds = sorted((CLIPS / name).iterdir())[:kinds]
        rows = [str(path) for kind in kinds for path in sorted(kind.iterdir())[:numbers]]
        (folder / f"{name}.csv").write_text("\n".join(rows))
    return [f"--config.data.train={folder}/train.csv", f"--config.data.eval={folder}/val.csv"]


def arguments(workdir, *more, steps=6):
    return ["train", f"--workdir={workdir}", *SMALL, f"--config.steps={steps}", *more]


def start(workdir, *more):
    """Start a run in a process of its own, as a user would."""
    program = "import sys; from videomae_jax import cli; cli.main(sys.argv[1:])"
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments(workdir, *more)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, manifests):
    workdir = tmp_path_factory.mktemp("straight")
    cli.main(arguments(workdir, "--config.save_every=4", *manifests))
    return workdir


def test_a_run_leaves_checkpoint_curve_metrics_and_tensorboard(straight):
    assert (straight / "checkpoints/6/params").is_dir()
    assert (straight / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((straight / "tensorboard").glob("events*"))
    assert sorted(losses(straight)) == [1, 2, 3, 4, 5, 6]
    (evaluation,) = held_out(straight)
    assert evaluation["step"] == 6 and 0 < evaluation["eval/vs_zero"]


def test_a_run_that_lost_its_last_steps_goes_on_bit_for_bit(straight, tmp_path, manifests):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    cli.main(arguments(workdir, "--config.save_every=4", *manifests))
    assert losses(workdir) == losses(straight)
    assert held_out(workdir) == held_out(straight)


def test_the_last_save_may_take_longer_than_a_step(tmp_path, manifests, monkeypatch):
    left = {}

    def train_steps(run, start, state, changes, monitor):
        monitor.begin(start)
        return True

    def note(name):
        return lambda *_: left.setdefault(name, signal.getitimer(signal.ITIMER_REAL)[0])

    monkeypatch.setattr(loop, "_train_steps", train_steps)
    monkeypatch.setattr(loop, "finish", lambda *_, **options: None)
    for name in ("wait", "verify"):
        monkeypatch.setattr(Checkpoints, name, note(name))
    cli.main(arguments(tmp_path, *manifests))
    assert left.keys() == {"wait", "verify"} and min(left.values()) > 1000


@pytest.mark.slow
def test_a_run_with_muon_goes_on_bit_for_bit(tmp_path, manifests, capsys):
    options = arguments(tmp_path, "--config.save_every=4", *manifests)
    muon = [*options, "--config.optimizer.kind=muon"]
    cli.main(muon)
    straight = losses(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/6")
    assert "optimizer.kind='muon'" in fails(capsys, *options)
    cli.main(muon)
    assert losses(tmp_path) == straight


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(straight, tmp_path, manifests):
    process = start(tmp_path, "--config.save_every=2", *manifests)
    deadline = time.monotonic() + 240
    # Killed without a chance to save: what is left is its own checkpoint of step 2 or 4.
    while not any((tmp_path / f"checkpoints/{step}").exists() for step in (2, 4)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    cli.main(arguments(tmp_path, "--config.save_every=2", *manifests))
    assert losses(tmp_path) == losses(straight)
    assert held_out(tmp_path) == held_out(straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_process_ends_it_with_42(tmp_path, number, manifests):
    # An evaluation after each step leaves time for the signal to arrive.
    process = start(tmp_path, "--config.eval_every=1", *manifests)
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(number)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 42, error
    assert f"{number.name}: saved step" in output


@pytest.mark.slow
def test_a_signal_saves_exits_42_and_loses_no_step(
    straight, tmp_path, manifests, capsys, monkeypatch
):
    record = Monitor.record

    def record_and_stop(self, step, *args, **options):
        record(self, step, *args, **options)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Monitor, "record", record_and_stop)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(tmp_path, *manifests))
    assert stopped.value.code == 42
    assert "SIGTERM: saved step 3" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    cli.main(arguments(tmp_path, *manifests))
    assert "going on from step 3" in capsys.readouterr().out
    assert losses(tmp_path) == losses(straight)


def test_a_run_that_was_stopped_in_its_last_evaluation_scores_it_later(
    straight, tmp_path, manifests, capsys, monkeypatch
):
    shutil.copytree(straight, tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.write_text("".join(x for x in metrics.open() if "eval/loss" not in x))
    evaluate = loop.evaluate

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments(tmp_path / "run", *manifests))
    assert stopped.value.code == 42 and held_out(tmp_path / "run") == []
    assert "stopped before step 6 was scored" in capsys.readouterr().out
    cli.main(arguments(tmp_path / "run", *manifests))
    assert held_out(tmp_path / "run") == held_out(straight)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_saves_the_step_and_scores_it_later(
    straight, tmp_path, manifests, capsys, monkeypatch
):
    every = ["--config.eval_every=2", *manifests]
    evaluate, calls = loop.evaluate, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) in (2, 3):  # of step 4, and of the next start
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **options)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    for said in ("SIGTERM: saved step 4", "stopped before step 4 was scored"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments(tmp_path, *every))
        assert stopped.value.code == 42 and said in capsys.readouterr().out
        assert [row["step"] for row in held_out(tmp_path)] == [2]
    cli.main(arguments(tmp_path, *every))
    assert [row["step"] for row in held_out(tmp_path)] == [2, 4, 6]
    assert held_out(tmp_path)[-1] == held_out(straight)[-1]
    assert losses(tmp_path) == losses(straight)


def test_ctrl_c_while_a_run_starts_ends_it_before_the_first_step(tmp_path, capsys, monkeypatch):
    jit_steps = loop.jit_steps

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return jit_steps(*args, **options)

    monkeypatch.setattr(loop, "jit_steps", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(tmp_path, "--config.data.train=synthetic", "--config.data.eval="))
    assert stopped.value.code == 42
    assert "SIGINT: stopped before step 1;" in capsys.readouterr().out
    assert losses(tmp_path) == {}


def test_a_finished_run_has_nothing_to_do(straight, capsys, manifests):
    cli.main(arguments(straight, *manifests))
    said = capsys.readouterr().out
    assert "nothing to train" in said and "done, 6 steps" in said
    changed = ["--config.save_every=4", "--config.optimizer.weight_decay=0.1"]
    cli.main(arguments(straight, *manifests, *changed, steps=5))
    said = capsys.readouterr().out
    assert "is at step 6, the run ends at 5; without effect: optimizer.weight_decay, steps" in said
    assert f"checkpoint  {straight}/checkpoints/6" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.batch_size=12"], "batch 12 is not divisible by 8 devices (data=8, fsdp=1)"),
        (["--config.batch_size=12"], "use 8 or 16"),
        (["--config.accumulation=3"], "8 devices (data=8, fsdp=1) x 3 accumulated parts: use 24"),
        (["--config.mask.ratio=1.0"], "mask ratio 1.0 of 4 patches leaves none visible"),
        (["--config.clip.width=20"], "width 20 is not a multiple of the patch's 8: use 16 or 24"),
        (["--config.data.train="], "config.data.train is not set"),
        (["--config.data.train=nowhere.csv"], "nowhere.csv"),
        (["--config.btach_size=8"], "did you mean --config.batch_size?"),
        (["--config.batch_size=many"], "--config.batch_size=many is not of type int"),
        (["--config.lr=1e-3", "--config.base_lr=1e-3"], "are both set"),
        (["--config.run.remat=some"], "remat 'some' is unknown: use one of none, dots, full"),
        (["--config.run.attention=cudnn"], "needs a GPU"),
        (["--config.model.mean=(0.5,)"], "model.mean has 1 channels, model.std 3"),
        pytest.param(  # found by the first read, while the step compiles
            ["--config.model.mean=(0.5,0.5)", "--config.model.std=(0.5,0.5)"],
            "1 channel (grey) or 3 (RGB), not 2",
            marks=pytest.mark.slow,
        ),
        (["--bogus=1"], "--bogus is unknown"),
        (["--config.save_every=0"], "save_every 0: use 1 or more"),
        (["--config.run.dtype=float15"], "'float15' is unknown: use auto, float32, bfloat16"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(tmp_path, capsys, overrides, words):
    assert words in fails(capsys, *arguments(tmp_path / "run", *overrides))


def test_a_missing_config_names_the_nearest_one(tmp_path, capsys):
    said = fails(capsys, "train", "--config=pretrian", f"--workdir={tmp_path}")
    assert "did you mean pretrain?" in said


def test_bad_manifests(tmp_path, capsys):
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    assert "empty.csv" in fails(capsys, *arguments(tmp_path, f"--config.data.train={empty}"))
    gone = tmp_path / "gone.csv"
    gone.write_text("a.mp4 0\nb.mp4 1\n")
    assert "2" in fails(capsys, *arguments(tmp_path, f"--config.data.train={gone}"))


def test_a_work_directory_that_cannot_be_written(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert "cannot write to --workdir" in fails(capsys, *arguments(file / "run"))


def test_the_checkpoint_of_another_model_is_refused_and_kept(straight, capsys, manifests):
    before = sorted(p.name for p in (straight / "checkpoints").iterdir())
    wider = "--config.model.encoder.width=64"
    said = fails(capsys, *arguments(straight, wider, *manifests, steps=9))
    assert "model.encoder.width=128, the config says 64" in said
    assert sorted(p.name for p in (straight / "checkpoints").iterdir()) == before


def test_a_run_of_another_task_is_said_to_be_one():
    changes = {"data.class_names": (("run",), None), "task": ("classify", "pretrain")}
    with pytest.raises(UserError, match="holds a checkpoint with task='classify', the config says"):
        check_same_model(changes, workdir="run")


def test_a_run_of_clips_with_another_number_of_channels_is_refused():
    check_same_model({"model.mean": ((0.5,), (0.4,))}, workdir="run")
    with pytest.raises(UserError, match=r"holds a checkpoint with model.mean=\(0.5,\), the config"):
        check_same_model({"model.mean": ((0.5,), (0.5, 0.5, 0.5))}, workdir="run")


def test_too_many_unreadable_videos_end_the_run_with_their_share(tmp_path, capsys):
    rows = [f"{CLIPS}/train/walk/walk_{number:03d}.mp4" for number in range(4)]
    for number in range(4):
        bad = tmp_path / f"bad{number}.mp4"
        bad.write_text("not a video")
        rows.append(str(bad))
    manifest = tmp_path / "some.csv"
    manifest.write_text("\n".join(rows))
    said = fails(capsys, *arguments(tmp_path / "run", f"--config.data.train={manifest}"))
    assert "of 8 videos unreadable" in said and "max_bad_share" in said
    assert "bad0.mp4" in (tmp_path / "run/bad_videos.csv").read_text()


@pytest.mark.slow
def test_one_unreadable_video_does_not_end_the_run(tmp_path, capsys):
    rows = [f"{CLIPS}/train/walk/walk_{number:03d}.mp4" for number in range(4)]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    manifest = tmp_path / "some.csv"
    manifest.write_text("\n".join([*rows, str(bad)]))
    videos = f"--config.data.train={manifest}"
    none = ["--config.data.eval=", "--config.data.holdout=0"]
    cli.main(arguments(tmp_path / "run", videos, *none))
    said = capsys.readouterr().out
    assert "done, 6 steps" in said and "replaced    1 of 5 videos unreadable" in said
    listed = (tmp_path / "run/bad_videos.csv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith(str(bad))


@pytest.mark.slow
def test_steps_that_are_not_finite_end_the_run_with_their_examples(tmp_path, capsys, manifests):
    more = [*manifests, "--config.max_skipped_steps=3", "--config.save_every=1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(tmp_path, *more, "--config.lr=1e38", steps=12))
    said = capsys.readouterr()
    assert stopped.value.code == 1
    # The first update has rate 0, the second throws the parameters out, the third is skipped.
    assert [f"({n} in a row)" in said.out for n in (1, 2, 3)] == [True, True, False]
    found = re.fullmatch(
        r"videomae: 3 steps in a row gave a loss or gradient that is not finite, the last at "
        r"step (\d+) on examples \[([\d, ]+)\]; none of them changed the model: .*",
        said.err.strip().splitlines()[-1],
    )
    ids = [int(word) for word in found[2].split(",")]
    assert len(set(ids)) == 8 and set(ids) <= set(range(16))
    first, last = (
        load_params(str(tmp_path / "checkpoints" / str(step)))[0]
        for step in (int(found[1]) - 3, int(found[1]) - 1)
    )
    assert digests(first) == digests(last)


def test_metrics_of_a_resumed_run_count_once(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_metrics(tmp_path) == [rows[0], rows[2]]


def test_peaks_of_known_chips():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert (peak_flops("TPU v5 lite"), peak_flops("TPU v5")) == (197e12, 459e12)
    assert peak_flops("cpu") is None
