"""`videomae benchmark`: a measurement anyone can check against itself."""

import json
import sys

import pytest

from videomae_jax.cli import main
from videomae_jax.commands.benchmark import MODELS
from videomae_jax.diagnostics.subprocesses import Child
from videomae_jax.errors import UserError
from videomae_jax.models.vit import SIZES

SMALL = [f"--config.clip.{side}=32" for side in ("height", "width")]


def measure(tmp_path, *flags):
    out = tmp_path / "results" / "out.json"
    main(["benchmark", "--model=tiny", "--repeats=3", f"--json={out}", *flags, *SMALL])
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "encode"])
def test_the_figures_agree_with_each_other(tmp_path, task):
    got = measure(tmp_path, f"--task={task}", "--batch=8")
    assert got["clips_per_second"] * got["ms_per_step"] == pytest.approx(8e3)
    assert got["ms_per_step"] == sorted(got["ms_of_each_step"])[1]
    assert got["finite"] and got["mfu"] is None  # the peak of a CPU is not known
    assert got["peak_memory_bytes"] > got["temporary_bytes"] > 0
    assert (got["loss"] is None) == (task == "encode")


def test_every_size_of_the_model_is_offered():
    assert set(MODELS) == set(SIZES)


def test_what_cannot_be_measured_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--model=tiny", "--batch=3", *SMALL])
    assert "--batch 3 does not divide by 8 devices" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark", "--what=augment", "--model=tiny", *SMALL])
    assert "use --task finetune" in capsys.readouterr().err


@pytest.mark.slow
def test_augmentation_beside_the_step(tmp_path):
    got = measure(tmp_path, "--what=augment", "--task=finetune", "--batch=8")
    assert got["share"] == pytest.approx(
        got["augment_cpu_ms"] / (got["augment_cpu_ms"] + got["step_cpu_ms"])
    )
    assert 0 < got["share"] < 1 and got["augment_temporary_bytes"] > 0
    assert got["canvas"] == [37, 49]


@pytest.mark.slow
def test_feed_and_step_together(tmp_path):
    got = measure(tmp_path, "--what=end-to-end", "--batch=8")
    assert 0 <= got["waiting_share"] < 1 and got["clips_per_second"] > 0 and got["finite"]
    assert measure(tmp_path, "--what=feed", "--batch=8")["bytes_per_second"] > 0


def test_resizing_on_host_and_device(tmp_path):
    got = measure(tmp_path, "--what=resize", "--batch=1", "--config.clip.frames=2")
    assert got["host_ms"] > 0 and got["device_ms"] > 0 and got["source"] == [256, 256]
    assert got["most"] == 1 and 0.8 < got["equal"] < 1


@pytest.mark.parametrize("task", ["pretrain", "finetune", "encode"])
def test_beside_transformers_the_losses_agree(tmp_path, task):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peer = ("--peer=transformers", f"--peer-python={sys.executable}")
    got = measure(tmp_path, f"--task={task}", "--batch=2", *peer)
    assert got["first_loss"] == pytest.approx(got["peer"]["first_loss"], rel=1e-4)
    assert got["ratio"] == sorted(got["ratio_of_each_pair"])[1]
    assert got["peer"]["peak_memory_bytes"] > 0 and got["environment"]["torch"]


def peer_that_says(tmp_path, program):
    """A stand-in for a Python with torch: it leaves the peer's script alone."""
    file = tmp_path / "python"
    file.write_text(f"#!{sys.executable}\nimport sys\n{program}\n")
    file.chmod(0o755)
    return ["benchmark", "--model=tiny", "--batch=2", *SMALL, "--peer=transformers"] + [
        f"--peer-python={file}"
    ]


@pytest.mark.slow
def test_times_of_different_work_are_refused(tmp_path, capsys):
    wrong = 'for _ in sys.stdin: print(\'{"loss": 2.0, "seconds": 1.0}\', flush=True)'
    with pytest.raises(SystemExit):
        main(peer_that_says(tmp_path, wrong))
    assert "the first losses differ" in capsys.readouterr().err


def test_a_child_that_ends_is_quoted(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such library')"]
    with Child("peer", command, env={}) as child, pytest.raises(UserError, match="no such library"):
        child.ask("start")


def test_a_peer_needs_its_python(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--model=tiny", "--peer=transformers"])
    assert "needs --peer-python" in capsys.readouterr().err
