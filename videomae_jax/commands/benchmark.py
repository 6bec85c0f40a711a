"""Time training steps on synthetic clips, alone or beside PyTorch, and the parts of a step.

videomae benchmark [--what step|attention|feed|resize|end-to-end] [--model b] [--batch N]
  [--task pretrain|finetune|encode] [--peer transformers --peer-python PYTHON] [--device cpu]
  [--json FILE]

The step is the one `videomae train` runs, optimizer included, on clips that have their size;
finetune leaves out augmentation.
"""

import argparse

DEVICES = ("auto", "cpu", "gpu", "tpu")
PEERS = ("none", "transformers", "transformers-compile")
WHAT = ("step", "attention", "feed", "resize", "end-to-end")
WARM_UP = 2
# Relative difference of the first losses; bfloat16 keeps 8 bits.
AGREE = {"float32": 1e-4, "bfloat16": 1e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--what", default="step", choices=WHAT)
    parser.add_argument("--model", default="b", choices=("tiny", "s", "b", "l", "h"))
    parser.add_argument("--task", default="pretrain", choices=("pretrain", "finetune", "encode"))
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="clips a step")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="steps timed")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument(
        "--peer",
        default="none",
        choices=PEERS,
        help="time transformers' model in turns with ours: same weights, clips, mask and loss",
    )
    parser.add_argument(
        "--peer-python", metavar="PYTHON", help="one that has torch and transformers"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result here")
    parser.set_defaults(overrides=[])
    parser.epilog = "--config.KEY=VALUE overrides a key of the config, e.g. --config.run.remat=dots"


def main(args: argparse.Namespace) -> None:
    import json
    import os
    from pathlib import Path

    from videomae_jax.errors import UserError

    if args.batch < 1 or args.repeats < 3:
        raise UserError(
            f"--batch {args.batch}, --repeats {args.repeats}: use at least 1 clip and 3 repeats"
        )
    if args.peer != "none" and args.what != "step":
        raise UserError(f"--what {args.what} has no peer: use --what step, or --peer none")
    if args.peer != "none" and not args.peer_python:
        raise UserError(f"--peer {args.peer} needs --peer-python, a Python that has transformers")
    if args.device != "auto":
        os.environ["JAX_PLATFORMS"] = "cuda" if args.device == "gpu" else args.device
    import jax

    from videomae_jax.devices.host_memory import disable_async_dispatch
    from videomae_jax.diagnostics.step_time import Job, build_bench

    disable_async_dispatch()
    job = Job(args.model, args.task, args.batch, tuple(args.overrides))
    try:
        # With a peer the device is left to the processes that are timed.
        device = jax.devices()[0].device_kind if args.peer == "none" else None
    except RuntimeError as problem:
        raise UserError(f"--device {args.device}: {str(problem).splitlines()[0]}") from None

    if args.what == "attention":
        result, text = _attention(args, device)
    elif args.what == "feed":
        result, text = _feed(job, args)
    elif args.what == "resize":
        result, text = _resize(job, args, device)
    elif args.what == "end-to-end":
        result, text = _end_to_end(build_bench(job), args)
    elif args.peer == "none":
        result, text = _step(build_bench(job), args)
    else:
        result, text = _beside(job, args)
    result |= {"what": args.what, "model": args.model, "task": args.task, "batch": args.batch}
    result["environment"] = {**_environment(), **result.get("environment", {})}
    where = result["environment"]
    print(f"{args.what}, {args.task}, ViT-{args.model}, {args.batch} clips; {where['device']}")
    print(text)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    if not result.get("finite", True):
        raise UserError("the loss or a gradient is not finite: try --config.run.attention=xla")


def _attention(args, device):
    import jax

    from videomae_jax.diagnostics.stage_time import time_attention

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    rows = time_attention(batch=args.batch, repeats=args.repeats, dtype=dtype)
    lines = ["  attention  tokens  head width  forward ms  forward and backward ms"]
    lines += [
        f"  {row['attention']:9}  {row['tokens']:6}  {row['head_width']:10}"
        f"  {row['forward_ms']:10.4g}  {row['both_ms']:23.4g}"
        for row in rows
    ]
    return {"dtype": dtype, "rows": rows, "environment": {"device": device}}, "\n".join(lines)


def _feed(job, args):
    import jax

    from videomae_jax.devices.sharding import batch_sharding, make_mesh
    from videomae_jax.diagnostics.stage_time import time_feed
    from videomae_jax.diagnostics.step_time import job_config, random_batch

    config = job_config(job)
    batch = random_batch(job, config)
    mesh = make_mesh(config.mesh)
    rate = time_feed(batch, batch_sharding(mesh), repeats=args.repeats)
    size = batch["video"][0].nbytes
    result = {"clips_per_second": rate, "bytes_per_second": rate * size}
    result["environment"] = {"device": f"{mesh.size} x {jax.devices()[0].device_kind}"}
    return result, f"  {rate:.4g} clips/s from the host to the device, {rate * size / 1e9:.3g} GB/s"


def _resize(job, args, device):
    import numpy as np

    from videomae_jax.diagnostics.stage_time import time_resize
    from videomae_jax.diagnostics.step_time import job_config

    config = job_config(job)
    clip = config.clip
    size = (clip.source_height, clip.source_width, len(config.model.mean))
    clips = np.random.default_rng(0).integers(0, 256, (args.batch, clip.frames, *size), np.uint8)
    result = time_resize(clips, height=clip.height, width=clip.width, repeats=args.repeats)
    result |= {"source": size[:2], "environment": {"device": device}}
    return result, (
        f"  {size[0]} x {size[1]} to {clip.height} x {clip.width}, {clip.frames} frames\n"
        f"  on the host {result['host_ms']:.3g} ms a clip in one thread, on the device "
        f"{result['device_ms']:.3g} ms ({result['device_cpu_ms']:.3g} ms of all host threads)\n"
        f"  of noise {result['equal']:.1%} of the values are equal, the others differ by "
        f"{result['most']} at most"
    )


def _end_to_end(bench, args):
    from videomae_jax.diagnostics.stage_time import time_end_to_end

    result = time_end_to_end(bench, repeats=args.repeats)
    result |= {"environment": {"device": bench.facts["device"]}, **bench.after()}
    return result, (
        f"  {result['clips_per_second']:.4g} clips/s end to end, waiting for clips "
        f"{result['waiting_share']:.1%} of the time"
    )


def _step(bench, args):
    taken = [bench.step(None) for _ in range(WARM_UP + args.repeats)]
    result = _measured(args, bench.facts, bench.after(), taken)
    return result, _text(result)


def _beside(job, args):
    """Time our step and the peer's in turns, each in a process of its own."""
    import os
    import statistics
    import sys
    import tempfile
    from pathlib import Path

    from videomae_jax.diagnostics.subprocesses import Child, write_job
    from videomae_jax.errors import UserError

    package = Path(__file__).parent.parent
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the peer needs room on the same GPU
    peer_env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    peer_env["HF_HUB_OFFLINE"] = "1"  # all it needs is in the folder
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder, job)
        ours = [sys.executable, "-m", "videomae_jax.diagnostics.subprocesses", name]
        with Child("the benchmark", ours, env=env | {"JAX_PLATFORMS": "cpu"}) as writer:
            writer.ask("write")
        with Child("the benchmark", ours, env=env) as our:
            facts = our.ask("start")
            platform, dtype = facts["platform"], facts["dtype"]
            if platform not in ("cpu", "gpu"):
                raise UserError(f"--peer {args.peer} runs on CPUs and GPUs, not on {platform}")
            script = str(package / "diagnostics" / "peer_torch.py")
            device = {"cpu": "cpu", "gpu": "cuda"}[platform]
            mode = args.peer.partition("-")[2] or "eager"
            command = [args.peer_python, script, name, args.task, device, dtype, mode]
            with Child(args.peer, command, env=peer_env) as peer:
                peer_facts = peer.ask("start")
                taken, theirs = [], []
                for index in range(WARM_UP + args.repeats):
                    pair = [(our, taken), (peer, theirs)]
                    for child, times in pair if index % 2 else pair[::-1]:
                        answer = child.ask("step")
                        times.append((answer["seconds"], answer["loss"]))
                    if not index:
                        _check_agreement(taken[0][1], theirs[0][1], AGREE[dtype])
                result = _measured(args, facts, our.ask("end"), taken)
                after = peer.ask("end")
    pairs = [b / a for (a, _), (b, _) in zip(taken[WARM_UP:], theirs[WARM_UP:], strict=True)]
    median = statistics.median(seconds for seconds, _ in theirs[WARM_UP:])
    result |= {
        "first_loss": taken[0][1],
        "ratio": statistics.median(pairs),
        "ratio_of_each_pair": pairs,
        "peer": {
            "name": args.peer,
            "clips_per_second": args.batch / median,
            "ms_per_step": 1e3 * median,
            "ms_of_each_step": [1e3 * seconds for seconds, _ in theirs[WARM_UP:]],
            "first_loss": theirs[0][1],
            **after,
        },
    }
    result["environment"] |= peer_facts
    text = (
        f"{_text(result)}\n  {args.peer}: {args.batch / median:.4g} clips/s, "
        f"{1e3 * median:.4g} ms a step, {after['peak_memory_bytes'] / 1e9:.3g} GB at most\n"
        f"  {result['ratio']:.3g} x its speed (pairs {min(pairs):.3g} to {max(pairs):.3g}); "
        f"first losses {taken[0][1]:.6f} and {theirs[0][1]:.6f}"
    )
    return result, text


def _check_agreement(ours: float, theirs: float, bound: float) -> None:
    from videomae_jax.errors import UserError

    if not abs(ours - theirs) <= bound * abs(theirs):
        raise UserError(
            f"the first losses differ, {ours:.7g} here and {theirs:.7g} of the peer: the two do "
            "not compute the same, so their times mean nothing"
        )


def _measured(args, facts: dict, after: dict, taken: list[tuple[float, float]]) -> dict:
    import statistics

    seconds = [seconds for seconds, _ in taken[WARM_UP:]]
    median = statistics.median(seconds)
    rate = args.batch / median
    peak = facts["peak_flops"]
    return {
        "clips_per_second": rate,
        "ms_per_step": 1e3 * median,
        "ms_of_each_step": [1e3 * x for x in seconds],
        "mfu": rate * facts["clip_flops"] / peak if peak else None,
        "temporary_bytes": facts["temporary_bytes"],
        "compile_seconds": facts["compile_seconds"],
        "loss": None if args.task == "encode" else taken[-1][1],
        "run": facts["run"],
        **after,
        "environment": {"device": facts["device"]},
    }


def _text(result: dict) -> str:
    times = result["ms_of_each_step"]
    return (
        f"  {result['run']['compute']}\n"
        f"  {result['clips_per_second']:.4g} clips/s, {result['ms_per_step']:.4g} ms a step "
        f"({min(times):.4g} to {max(times):.4g} in {len(times)})\n"
        f"  compiled in {result['compile_seconds']:.3g} s, loss {result['loss']}, "
        f"finite: {result['finite']}\n"
        f"  {result['peak_memory_bytes'] / 1e9:.3g} GB at most, temporaries "
        f"{result['temporary_bytes'] / 1e9:.3g} GB; MFU {result['mfu'] or 'not known'}"
    )


def _environment() -> dict[str, str | None]:
    """What a figure depends on beside the program."""
    import platform
    import subprocess
    import time
    from importlib.metadata import version
    from pathlib import Path

    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        commit = None
    return {
        "commit": commit,
        "machine": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
    }
