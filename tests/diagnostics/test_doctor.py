"""The checks of the doctor: what passes, and what must fail."""

import json

import pytest

from videomae_jax import cli
from videomae_jax.diagnostics import doctor


def write_run(folder, *, waiting=0.01, vs_zero=0.4, loss=(1.0, 0.7, 0.4), **last):
    rows = [
        {"step": 20 * n, "loss": value, "waiting_share": waiting, "clips_per_second": 100.0}
        for n, value in enumerate(loss, 1)
    ]
    rows[-1] |= {"vs_zero": vs_zero, **last}
    account = dict(began=0.0, starts=3, step=60, steps=65, lost_steps=5)
    account |= dict(stepping=1.0, waiting=0.0, saving=0.0, evaluating=0.0)
    (folder / "goodput.json").write_text(json.dumps(account))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "checkpoints/40").mkdir(parents=True)
    return {finding.name: finding for finding in doctor.examine_run(str(folder))}


def test_a_healthy_run(tmp_path):
    found = write_run(tmp_path, restarts=2, lost_steps=5, useful_share=0.8)
    assert all(finding.fine and not finding.advice for finding in found.values())
    assert "60 steps logged, newest checkpoint at step 40" in found["history"].text
    assert "2 restarts that lost 5 steps; 80% of the time" in found["history"].text


def test_a_data_bound_run_fails_a_check(tmp_path):
    found = write_run(tmp_path, waiting=0.6)
    assert [name for name, finding in found.items() if not finding.fine] == ["data"]
    assert "60% of the time waiting" in found["data"].text and "local disk" in found["data"].advice


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (dict(vs_zero=1.01), "worse than predicting zero"),
        (dict(loss=(1.0, 1.2, 1.1)), "never fell"),
    ],
)
def test_a_run_that_does_not_learn_fails_a_check(tmp_path, run, words):
    found = write_run(tmp_path, **run)
    assert [name for name, finding in found.items() if not finding.fine] == ["loss"]
    assert words in found["loss"].advice


def test_unreadable_videos_are_counted_by_reason(tmp_path):
    # Two processes met the first one.
    rows = ["path,reason,process", "a.mp4,invalid data,0", "b.mp4,no such file,0"]
    rows.append("a.mp4,invalid data,1")
    (tmp_path / "bad_videos.csv").write_text("\n".join([*rows, "c.mp4,invalid data,1"]))
    found = write_run(tmp_path)
    assert found["videos"].text == "3 could not be read: 2 invalid data, 1 no such file"
    assert not found["videos"].fine
    # As in a bucket.
    (tmp_path / "processes/1").mkdir(parents=True)
    (tmp_path / "processes/1/bad_videos.csv").write_text(f"{rows[0]}\nd.mp4,no such file,1\n")
    found = doctor.bad_videos(tmp_path)
    assert found.text == "4 could not be read: 2 invalid data, 2 no such file"


def test_a_folder_without_a_run_is_a_mistake(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", str(tmp_path)])
    assert stopped.value.code == 1 and "no run in" in capsys.readouterr().err


def test_decoder_devices_versions_and_disk_of_this_machine(tmp_path):
    found = [doctor.versions(), doctor.devices(), doctor.decoder(), doctor.disk(str(tmp_path))]
    assert all(finding.fine for finding in found), found
    assert "8 x cpu" in found[1].text and "free" in found[3].text
    assert not list(tmp_path.iterdir())


def test_a_decoder_that_shifts_frames_is_found(monkeypatch):
    read = doctor.read_clip
    monkeypatch.setattr(doctor, "read_clip", lambda path, choose: read(path, choose)[::-1])
    assert not doctor.decoder().fine


def test_a_disk_that_cannot_be_written_is_found(tmp_path):
    assert "cannot write there" in doctor.disk(str(tmp_path / "missing")).advice


@pytest.mark.slow
def test_the_step_overfits_and_one_that_does_not_learn_is_found(monkeypatch):
    assert doctor.overfit().fine
    rate = doctor.warmup_cosine
    monkeypatch.setattr(
        doctor, "warmup_cosine", lambda schedule: lambda step: 0 * rate(schedule)(step)
    )
    assert not doctor.overfit().fine


def test_failed_checks_are_listed_and_exit_1(tmp_path, capsys, monkeypatch):
    write_run(tmp_path, waiting=0.6)
    monkeypatch.setattr(doctor, "examine_machine", lambda _: [doctor.versions()])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", str(tmp_path), f"--json={tmp_path}/found.json"])
    said = capsys.readouterr()
    assert stopped.value.code == 1 and said.err == "videomae: failed checks: data\n"
    told = {row["name"]: row["fine"] for row in json.loads((tmp_path / "found.json").read_text())}
    assert told == {"versions": True, "history": True, "videos": True, "loss": True, "data": False}
