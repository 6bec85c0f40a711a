"""`videomae benchmark`: a measurement anyone can check against itself."""

import json

import pytest

from videomae_jax.cli import main

SMALL = [f"--config.clip.{side}=32" for side in ("height", "width")]


def measure(tmp_path, *flags):
    out = tmp_path / "out.json"
    main(["benchmark", "--model=tiny", "--repeats=3", f"--json={out}", *flags, *SMALL])
    return json.loads(out.read_text())


@pytest.mark.parametrize("task", ["pretrain", "encode"])
def test_the_figures_agree_with_each_other(tmp_path, task):
    got = measure(tmp_path, f"--task={task}", "--batch=8")
    assert got["clips_per_second"] * got["ms_per_step"] == pytest.approx(8e3)
    assert got["ms_per_step"] == sorted(got["ms_of_each_step"])[1]
    assert got["finite"] and got["mfu"] is None  # the peak of a CPU is not known
    assert got["peak_memory_bytes"] > got["temporary_bytes"] > 0
    assert (got["loss"] is None) == (task == "encode")


def test_what_cannot_be_measured_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--model=tiny", "--batch=3", *SMALL])
    assert "--batch 3 does not divide by 8 devices" in capsys.readouterr().err
