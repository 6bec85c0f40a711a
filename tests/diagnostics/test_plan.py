"""Planning: steps compiled for the local devices and for named topologies."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from runs import count_norms_taken_in

from videomae_jax import cli
from videomae_jax.commands.plan import memory_line
from videomae_jax.config import load_config
from videomae_jax.devices.sharding import split_slices
from videomae_jax.diagnostics import plan
from videomae_jax.diagnostics.topology import find_devices
from videomae_jax.errors import UserError
from videomae_jax.tasks import pretrain

ROOT = Path(__file__).parents[2]
TINY = [
    "--config.clip.height=32",
    "--config.clip.width=32",
    "--config.clip.frames=4",
    "--config.mask.ratio=0.75",
    "--config.model.encoder.depth=2",
    "--config.model.decoder.depth=1",
]


def test_the_memory_of_an_unknown_gpu_is_what_jax_may_use():
    def gpu(stats):
        return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    assert plan._capacity(gpu({"bytes_limit": 18 * 10**9}), None) == 18 * 10**9
    assert plan._capacity(gpu(None), None) is None
    step = SimpleNamespace(needed=10**9, capacity=None, fits=True, arguments=None)
    assert "fits" not in memory_line(step) and "unknown" in memory_line(step)
    step.capacity = 18 * 10**9
    assert "1 GB of 18 GB per device: fits" in memory_line(step)


@functools.cache  # a compile takes seconds
def plan_here(*overrides):
    config = load_config("pretrain:tiny,custom", [*TINY, *overrides])
    config, videos = plan.prepare_config(config, pretrain, examples=1000)
    devices, hosts = find_devices("here")
    return plan.plan_step(config, pretrain, devices=devices, hosts=hosts, examples=len(videos))


@pytest.mark.slow
def test_a_data_parallel_step_sends_each_gradient_once():
    step = plan_here("--config.batch_size=16")
    (row,) = step.collectives
    config = load_config("pretrain:tiny,custom", TINY)
    params = jax.eval_shape(pretrain.build_task(config).init, jax.random.key(0))
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    # Around a ring of eight; beside the gradients go a few sums, and those of weights make those
    # of the norms in them.
    sent = gradients - 4 * count_norms_taken_in(config)
    assert row.kind == "all-reduce" and not row.remote
    assert row.bytes == pytest.approx(2 * 7 / 8 * sent, rel=1e-3)
    assert step.fits and step.flops * 8 == pytest.approx(
        16 * pretrain.build_task(config).train_flops
    )
    # The state: parameters and two moments.
    assert step.arguments > 3 * gradients
    assert step.needed >= step.arguments + step.temporaries


@pytest.mark.slow
def test_a_plan_for_accelerators_resizes(monkeypatch):
    """What is compiled has the batch that training would be fed."""
    here = plan_here("--config.batch_size=8")
    monkeypatch.setattr(pretrain, "platform_in_use", lambda: "gpu")
    there = plan_here.__wrapped__("--config.batch_size=8")
    larger = 4 * 3 * (256 * 256 - 32 * 32) + 8  # a clip and its size
    assert there.arguments - here.arguments == pytest.approx(larger, abs=64)
    assert there.flops == here.flops


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would(tmp_path, capsys, monkeypatch):
    def pretend(config, kind, **_):
        if config.run.remat != "none":
            raise UserError("this remat is not to be had")
        needed = 10**6 * (1 + 8 // config.accumulation) // config.mesh.fsdp
        return whole._replace(needed=needed, capacity=4 * 10**6, fits=needed <= 4 * 10**6)

    whole = plan_here("--config.batch_size=16")
    monkeypatch.setattr(plan, "plan_step", pretend)
    options = ["--config=pretrain:tiny,custom", *TINY, "--config.batch_size=64"]
    cli.main(["plan", *options, f"--json={tmp_path}/plan.json"])
    said = capsys.readouterr().out
    assert "9 MB of 4 MB per device: does not fit" in said
    assert "--config.accumulation=2: 5 MB of 4 MB per device: does not fit" in said
    assert "run.remat=full: this remat is not to be had" in said
    assert "--config.mesh.fsdp=2: 4.5 MB of 4 MB per device: does not fit" in said
    assert "--config.mesh.fsdp=4: 2.25 MB of 4 MB per device: fits" in said
    assert said.endswith("\nuse --config.mesh.fsdp=4\n")
    told = json.loads((tmp_path / "plan.json").read_text())
    assert not told["fits"] and told["steps"] is None
    assert told["would_fit"]["change"] == {"mesh.fsdp": 4} and told["would_fit"]["fits"]
    # One that nothing makes fit.
    monkeypatch.setattr(plan, "plan_step", lambda *_, **__: whole._replace(fits=False))
    cli.main(["plan", *options])
    assert "nothing tried" in capsys.readouterr().out


def test_what_costs_least_is_tried_first_and_the_most_saving_before_what_is_between():
    def tried(enough, *overrides):
        config = load_config("pretrain:tiny,custom", overrides)
        seen = []

        def fits(change):
            changed = plan.change_config(config, change)
            assert changed.is_locked and changed != config
            seen.append((changed.mesh.fsdp, changed.accumulation, changed.run.remat))
            return enough(*seen[-1])

        change = plan.find_fit(config, 8, fits)
        assert config.accumulation == 1
        return change, seen

    batch = "--config.batch_size=64"
    assert tried(lambda fsdp, parts, remat: True, batch)[0] == {"accumulation": 2}
    change, seen = tried(lambda fsdp, parts, remat: parts >= 4, batch)
    assert change == {"accumulation": 4}
    assert seen == [(1, 2, "none"), (1, 8, "full"), (1, 4, "none")]
    # Whole parameters: parts before recomputing. Split ones: recomputing before parts.
    change, _ = tried(lambda fsdp, parts, remat: remat != "none", batch)
    assert change == {"accumulation": 8, "run.remat": "dots"}
    change, seen = tried(lambda fsdp, parts, remat: fsdp > 2 and remat == "full", batch)
    assert change == {"run.remat": "full", "mesh.fsdp": 4}
    assert seen[:4] == [(1, 2, "none"), (1, 8, "full"), (2, 1, "none"), (2, 8, "full")]
    # Of a batch that has no parts; and nothing.
    change, seen = tried(lambda fsdp, parts, remat: fsdp == 8, "--config.batch_size=8")
    assert change == {"mesh.fsdp": 8} and seen[:2] == [(1, 1, "dots"), (1, 1, "full")]
    change, seen = tried(lambda *_: False, "--config.batch_size=8", "--config.run.remat=full")
    assert change is None and seen == [(fsdp, 1, "full") for fsdp in (2, 4, 8)]
    split = ("--config.mesh.fsdp=-1", "--config.mesh.data=1")
    change, seen = tried(lambda *_: False, "--config.batch_size=16", *split)
    assert change is None
    assert seen == [(-1, 1, "dots"), (-1, 2, "full")]


@pytest.mark.slow
def test_the_command_and_train_plan_say_the_same(tmp_path, capsys):
    options = ["--config=pretrain:tiny,custom", *TINY, "--config.batch_size=8"]
    options += ["--config.data.train=synthetic", "--config.steps=40", "--config.warmup_steps=4"]
    cli.main(["plan", *options, f"--json={tmp_path}/plan.json"])
    said = capsys.readouterr().out
    cli.main(["train", "--plan", f"--workdir={tmp_path}/run", *options])
    assert capsys.readouterr().out == said
    assert not (tmp_path / "run").exists()
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["fits"] and told["steps"] == 40 and told["mesh"]["data"] == 8
    assert f"{told['needed'] / 1e6:.3g} MB of" in said and "closed form" in said


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 21.5G of 15.75G hbm. Exceeded ...", 21.5 * 2**30),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (19.87G) exceeds available HBM (15.75G).",
            19.87 * 2**30,
        ),
        ("INTERNAL: Used 21.5G of 15.75G hbm", None),
    ],
)
def test_what_a_compiler_says_when_memory_runs_out(message, needed):
    assert plan._out_of_memory(message) == (needed and int(needed))


def test_a_mesh_that_the_devices_cannot_have_is_refused_before_compiling():
    with pytest.raises(UserError, match="needs a multiple of 3 devices, there are 8"):
        plan_here("--config.mesh.fsdp=3")
    with pytest.raises(UserError, match="batch 12 is not divisible by 8 devices"):
        plan_here("--config.batch_size=12")


def test_devices_that_are_not_there_need_not_tell_their_slice():
    # As libtpu describes them: a slice is told only where there are several.
    one = [SimpleNamespace(platform="tpu") for _ in range(4)]
    two = [SimpleNamespace(platform="tpu", slice_index=n // 2) for n in range(4)]
    assert split_slices(one) == [one] and split_slices(two) == [two[:2], two[2:]]


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"'
)


needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason='needs the CUDA plugin: pip install "videomae_jax[plan-gpu]"',
)


def plan_away(folder, topology, *overrides):
    """In a process of its own, as compilers need an environment from before JAX starts."""
    command = [sys.executable, "-m", "videomae_jax.cli", "plan", f"--topology={topology}"]
    command += ["--config=pretrain:tiny,custom", *TINY, "--config.batch_size=64"]
    subprocess.run([*command, *overrides, f"--json={folder}/plan.json"], cwd=ROOT, check=True)
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "devices", "memory"),
    [("v5e-16", 16, 16), ("v5e-16x2", 32, 16), ("tpu7x-16", 16, 96)],
)
def test_a_step_compiles_for_a_pod_that_is_not_there(tmp_path, topology, devices, memory):
    told = plan_away(tmp_path, topology)
    assert told["mesh"]["data"] == devices and told["capacity"] == memory * 2**30
    assert told["fits"] and "all-reduce" in {row["kind"] for row in told["collectives"]}
    assert any(row["remote"] for row in told["collectives"]) == ("x2" in topology)
    assert told["step_seconds"] > told["compute_floor"] / told["assumed_mfu"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_cuda
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_compiles_for_gpus_that_are_not_there(tmp_path, parts):
    told = plan_away(tmp_path, "h100-8x2", f"--config.accumulation={parts}")
    assert told["mesh"]["data"] == 16 and told["capacity"] == 80 * 10**9 and told["fits"]
    assert [(row["kind"], row["remote"]) for row in told["collectives"]] == [("all-reduce", True)]
    forward, backward = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    assert told["kernels"][forward] == told["kernels"][backward] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
def test_fsdp_gathers_parameters_and_scatters_gradients_on_tpus(tmp_path):
    told = plan_away(tmp_path, "v5e-8", "--config.mesh.fsdp=8")
    sent = {row["kind"]: row["bytes"] for row in told["collectives"]}
    assert set(sent) == {"all-gather", "reduce-scatter", "all-reduce"}
    # What is not split, biases and norms, and sums of the loss.
    assert sent["all-reduce"] < 0.1 * sum(sent.values())
    task = pretrain.build_task(load_config("pretrain:tiny,custom", TINY))
    leaves = jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
    parameters = 4 * sum(leaf.size for leaf in leaves)
    # Forward, and again backward; no activation goes anywhere.
    assert sent["all-gather"] < 2.1 * parameters
    assert sent["reduce-scatter"] < parameters
