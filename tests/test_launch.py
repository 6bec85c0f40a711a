"""The files of launch/: what can be checked without a cluster, and what each would do on one."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from runs import fails

from videomae_jax import cli

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(p.name for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))
JOBSETS = ("gke_tpu.yaml", "k8s_gpu.yaml")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(name):
    command = [Path(sys.executable).parent / "shellcheck", "-x", "-P", LAUNCH, LAUNCH / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def jobs(name):
    for replicated in yaml.safe_load((LAUNCH / name).read_text())["spec"]["replicatedJobs"]:
        yield replicated["template"]["spec"]


@pytest.mark.parametrize("name", JOBSETS)
def test_the_jobs_of_a_jobset_are_valid_kubernetes(name):
    for spec in jobs(name):
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": spec}
        kubernetes_validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_restarts_on_everything_but_1_and_0(name):
    jobset = yaml.safe_load((LAUNCH / name).read_text())["spec"]
    (rule,) = jobset["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert jobset["failurePolicy"]["maxRestarts"] > 0
    for spec in jobs(name):
        (rule,) = spec["podFailurePolicy"]["rules"]
        (container,) = spec["template"]["spec"]["containers"]
        assert rule["action"] == "FailJob" and spec["backoffLimit"] == 0
        assert rule["onExitCodes"]["values"] == [1]
        assert rule["onExitCodes"]["containerName"] == container["name"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec["parallelism"] == spec["completions"]


def test_the_gpu_jobset_tells_each_process_its_place():
    (spec,) = jobs("k8s_gpu.yaml")
    jobset = yaml.safe_load((LAUNCH / "k8s_gpu.yaml").read_text())
    (container,) = spec["template"]["spec"]["containers"]
    told = {row["name"]: row.get("value") for row in container["env"]}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    name = jobset["metadata"]["name"]
    # How JobSet names pods: JOBSET-JOB-INDEX-POD.JOBSET.
    host = f"{name}-{replicated['name']}-0-0.{name}"
    assert told["JAX_COORDINATOR_ADDRESS"].partition(":")[0] == host
    assert int(told["JAX_NUM_PROCESSES"]) == spec["completions"]


@pytest.mark.skipif(importlib.util.find_spec("sky") is None, reason="needs pip install skypilot")
def test_skypilot_reads_its_task(monkeypatch):
    import sky

    monkeypatch.chdir(LAUNCH.parent)
    task = sky.Task.from_yaml(str(LAUNCH / "skypilot.yaml"))
    (resources,) = task.resources
    assert resources.use_spot and task.envs["WORKDIR"].startswith("/work")
    codes = resources.job_recovery["recover_on_exit_codes"]
    # Saved, a dead peer, killed, the watchdog, a signal that came too early.
    assert {42, 134, 137, 142, 143} <= set(codes)
    assert all(code == 42 or code >= 127 for code in codes)
    assert "max_restarts_on_errors" not in resources.job_recovery


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Make a command on PATH that notes its arguments, a line each, and ends as told."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name, *, codes=(0,)):
        # The n-th call ends with the n-th code, later ones with the last.
        program = f"""#!/usr/bin/env bash
# One write, for calls at the same time.
line=$(printf '%s\\x1f' {name} "$@")
echo "${{line//$'\\n'/$'\\x1d'}}" >> {log}
codes=({" ".join(map(str, codes))})
n=$(grep -c '^{name}' {log})
exit "${{codes[$((n > ${{#codes[@]}} ? ${{#codes[@]}} - 1 : n - 1))]}}"
"""
        (folder / name).write_text(program)
        (folder / name).chmod(stat.S_IRWXU)

    make.calls = lambda: [
        line.replace("\x1d", "\n").split("\x1f")[:-1]
        for line in (log.read_text() if log.exists() else "").split("\n")[:-1]
    ]
    return make


def launch(script, *arguments, **environment):
    return subprocess.run(
        [LAUNCH / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=LAUNCH.parent,
        env=os.environ | environment,
    )


PLACE = {"PROJECT": "project", "ZONE": "zone"}


def test_tpu_vm_asks_gcloud_for_what_it_says(fake):
    fake("gcloud")
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    where = ["--project", "project", "--zone", "zone"]
    for verb, *more in (["create", "run1", "v5litepod-64"], ["status", "run1"], ["delete", "run1"]):
        assert launch("tpu_vm.sh", verb, *more, **PLACE, SPOT="1").returncode == 0
    create, status, delete = fake.calls()
    assert create[:9] == [*queue, "create", "run1", *where][:9]
    assert "--spot" in create and create[create.index("--node-id") + 1] == "run1"
    assert create[create.index("--accelerator-type") + 1] == "v5litepod-64"
    assert status[4:6] == ["describe", "run1"] and delete[4:6] == ["delete", "run1"]


def test_tpu_vm_starts_every_machine_of_every_slice(fake):
    fake("gcloud")
    source = {"SOURCE": "/work/code dir", "MOUNT": "true", "SLICES": "2"}
    options = ["pretrain:b,k400", "/work/run", "--config.name=two words"]
    done = launch("tpu_vm.sh", "run", "pod", *options, **PLACE, **source)
    assert done.returncode == 0, done.stderr
    first, second = fake.calls()
    assert first[5] == "pod-0" and second[5] == "pod-1" and "--worker=all" in first
    # What the machine's shell makes of the command: one loop, with the words as they were given.
    remote = first[first.index("--command") + 1]
    script = subprocess.run(
        ["bash", "-c", remote.replace("nohup bash -c", "printf %s").rpartition(" > ")[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'--config.name=two words'" in script and "-eq 42" in script and "-ge 127" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_tpu_vm_asks_for_the_software_of_its_type(fake, kind, runtime):
    fake("gcloud")
    assert launch("tpu_vm.sh", "create", "run1", kind, **PLACE).returncode == 0
    assert launch("tpu_vm.sh", "create", "run1", kind, **PLACE, RUNTIME="other").returncode == 0
    chosen = [call[call.index("--runtime-version") + 1] for call in fake.calls()]
    assert chosen == [runtime, "other"]


def test_tpu_vm_does_not_guess_the_software_of_a_new_type(fake):
    fake("gcloud")
    done = launch("tpu_vm.sh", "create", "run1", "tpu7x-64", **PLACE)
    assert done.returncode == 1 and "set RUNTIME" in done.stderr and fake.calls() == []


def test_a_dry_run_prints_the_commands_and_asks_for_nothing(fake):
    fake("gcloud")
    words = ["run", "pod", "pretrain:b,k400", "gs://bucket/run", "--config.name=it's two words"]
    done = launch("tpu_vm.sh", "--dry-run", *words, **PLACE, SOURCE="/work/code dir")
    assert done.stdout.startswith("gcloud compute tpus tpu-vm ssh pod --project project")
    assert fake.calls() == []
    # People can read the lines of the script; a shell can run them.
    loop = "while true; do videomae train --config=pretrain:b,k400 --workdir=gs://bucket/run"
    assert any(line.startswith(loop) for line in done.stdout.splitlines())
    subprocess.run(["bash", "-c", done.stdout], check=True)
    printed = fake.calls()
    launch("tpu_vm.sh", *words, **PLACE, SOURCE="/work/code dir")
    assert printed and fake.calls() == 2 * printed


def test_a_command_without_its_words_says_how(fake):
    fake("gcloud")
    for arguments in (["create", "run1"], ["dance", "run1"], []):
        done = launch("tpu_vm.sh", *arguments, **PLACE)
        assert done.returncode == 1 and "tpu_vm.sh create NAME TYPE" in done.stderr


def test_xpk_gets_one_workload(fake):
    fake("xpk")
    words = ["job", "v5litepod-64", 2, "image", "pretrain:b,k400", "/work/run"]
    assert launch("xpk.sh", *words, CLUSTER="cluster").returncode == 0
    (call,) = fake.calls()
    assert call[:3] == ["xpk", "workload", "create"]
    assert call[call.index("--num-slices") + 1] == "2"
    assert "train --config=pretrain:b" in call[call.index("--command") + 1]


@pytest.mark.parametrize(
    ("codes", "starts", "end"),
    [((42, 137, 0), 3, 0), ((1,), 1, 1), ((42, 1), 2, 1), ((0,), 1, 0)],
)
def test_a_local_run_restarts_by_the_contract(fake, tmp_path, codes, starts, end):
    fake("videomae", codes=codes)
    done = launch("local.sh", 1, tmp_path / "run", "--config=demo", PAUSE="0")
    calls = fake.calls()
    assert (len(calls), done.returncode) == (starts, end), done.stderr
    command = ["videomae", "train", f"--workdir={tmp_path}/run", "--config=demo"]
    assert all(call == command for call in calls)


def test_a_local_run_does_not_restart_after_a_signal(fake, tmp_path):
    fake("videomae", codes=(42,))
    words = [LAUNCH / "local.sh", "1", tmp_path / "run", "--config=demo"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ | {"PAUSE": "60"}) as run:
        assert b"exit code 42, starting again" in run.stderr.readline()
        run.terminate()
        assert run.wait(30) == 42
    assert len(fake.calls()) == 1


def test_local_processes_are_told_their_places(fake, tmp_path):
    fake("videomae")
    done = launch("local.sh", 2, tmp_path / "run", "--config=demo", PAUSE="0", PORT="2000")
    assert done.returncode == 0
    told = sorted(" ".join(call) for call in fake.calls())
    place = "--coordinator 127.0.0.1:2000 --processes 2 --process-id"
    assert [place + f" {i}" in line for i, line in enumerate(told)] == [True, True]


@pytest.mark.parametrize("workdir", ["{}/new", "gs://bucket/run"])
@pytest.mark.parametrize(
    ("codes", "end", "requeued"),
    [((42, 42), 42, True), ((0, 134), 134, True), ((0, 0), 0, False), ((1, 134), 1, False)],
)
def test_slurm_requeues_by_the_contract(fake, tmp_path, workdir, codes, end, requeued):
    """Two tasks with these exit codes; a 1 counts, whatever it did to the other."""
    fake("videomae", codes=codes)
    fake("scontrol")
    # As Slurm's: runs every task, and ends with the highest code.
    (tmp_path / "bin/srun").write_text('#!/usr/bin/env bash\n"$@"; a=$?; "$@"; b=$?\n')
    with (tmp_path / "bin/srun").open("a") as file:
        file.write("exit $((a > b ? a : b))\n")
    (tmp_path / "bin/srun").chmod(stat.S_IRWXU)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "LAUNCH": str(LAUNCH), "SLURM_JOB_ID": "7"}
    workdir = workdir.format(tmp_path)
    slurm |= {"WORKDIR": workdir, "VENV": ""}
    copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    done = subprocess.run(["bash", copy, "--config=demo"], env=os.environ | slurm, timeout=60)
    assert done.returncode == end
    *tasks, last = fake.calls() if requeued else [*fake.calls(), None]
    assert tasks == 2 * [["videomae", "train", f"--workdir={workdir}", "--config=demo"]]
    assert last == (["scontrol", "requeue", "7"] if requeued else None)


def test_the_environment_keeps_what_is_set():
    script = f"source {LAUNCH}/env.sh; env"
    told = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": os.environ["PATH"], "WORKDIR": "/work/run", "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert "JAX_COMPILATION_CACHE_DIR=/work/run/compiled" in told
    assert "TF_CPP_MIN_LOG_LEVEL=0" in told and "PYTHONUNBUFFERED=1" in told
    assert not any(line.startswith("XLA_FLAGS") for line in told)


def test_the_readme_names_every_file():
    named = set(re.findall(r"launch/([\w.]+)", (LAUNCH / "README.md").read_text()))
    files = {path.name for path in LAUNCH.iterdir()} - {"README.md"}
    assert files <= named


def test_the_command_writes_every_file(tmp_path, capsys):
    cli.main(["launch", str(tmp_path / "launch")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "launch").iterdir()} == {
        path.name: path.read_bytes() for path in LAUNCH.iterdir()
    }
    assert os.access(tmp_path / "launch/local.sh", os.X_OK)
    assert "give a new folder" in fails(capsys, "launch", tmp_path / "launch")
