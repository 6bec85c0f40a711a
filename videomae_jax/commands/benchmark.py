"""Time training steps, or the encoder, on synthetic clips that are on the device already.

videomae benchmark [--model b] [--task pretrain|finetune|encode] [--batch N] [--json FILE]

The step is the one `videomae train` runs, optimizer included; finetune leaves out augmentation.
"""

import argparse

TASKS = ("pretrain", "finetune", "encode")
CLASSES = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="b", choices=("tiny", "s", "b", "l", "h"))
    parser.add_argument("--task", default="pretrain", choices=TASKS)
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="clips a step")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="steps timed")
    parser.add_argument("--json", metavar="FILE", help="write the result here")
    parser.set_defaults(overrides=[])
    parser.epilog = "--config.KEY=VALUE overrides a key of the config, e.g. --config.run.remat=dots"


def main(args: argparse.Namespace) -> None:
    import json
    import platform
    import resource
    import statistics
    import time
    from importlib.metadata import version
    from pathlib import Path

    import jax
    import numpy as np

    from videomae_jax.config import load_config
    from videomae_jax.errors import UserError
    from videomae_jax.tasks import classify, pretrain
    from videomae_jax.tasks.infer import build_network, outputs
    from videomae_jax.training.chips import peak_flops
    from videomae_jax.training.optim import Plan, make_optimizer, warmup_cosine
    from videomae_jax.training.sharding import batch_devices, batch_sharding, make_mesh
    from videomae_jax.training.step import jit_steps

    if args.batch < 1 or args.repeats < 3:
        raise UserError(
            f"--batch {args.batch}, --repeats {args.repeats}: use at least 1 clip and 3 repeats"
        )
    kind = classify if args.task == "finetune" else pretrain
    recipe = "finetune" if args.task == "finetune" else "pretrain"
    overrides = list(args.overrides)
    if args.task == "finetune":
        none = ("operations=0", "mixup=0.0", "cutmix=0.0", "erase=0.0")
        overrides = [f"--config.augment.{key}" for key in none] + overrides
        overrides = [f"--config.model.classes={CLASSES}", *overrides]
    config = load_config(f"configs/{recipe}.py:{args.model},k400", overrides)
    task, clip, mesh = kind.build_task(config), config.clip, make_mesh(config.mesh)
    if args.batch % batch_devices(mesh):
        devices = batch_devices(mesh)
        raise UserError(f"--batch {args.batch} does not divide by {devices} devices: use {devices}")

    shape = (args.batch, clip.frames, clip.height, clip.width, len(config.model.mean))
    rows = np.arange(args.batch, dtype=np.int32)
    batch = {
        "video": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        **{key: rows for key in ("id", "row", "label")},
    }
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, batch_sharding(mesh))
        plan = Plan(1000, 100, 100, 1e-4, 1e-6)
        steps = jit_steps(
            task, make_optimizer(config), warmup_cosine(plan), mesh, seed=0, accumulation=1
        )
        state, metrics = steps.init(), {}
        began = time.perf_counter()
        if args.task == "encode":
            network = build_network(config)
            encode = jax.jit(lambda p, video: outputs(network, p, video)["features"])
            compiled = encode.lower(state.params, batch["video"]).compile()
        else:
            compiled = steps.train.lower(state, batch).compile()
        compile_seconds = time.perf_counter() - began

        seconds = []
        for _ in range(2 + args.repeats):  # two to warm up
            began = time.perf_counter()
            if args.task == "encode":
                result = jax.block_until_ready(compiled(state.params, batch["video"]))
            else:
                state, metrics = jax.block_until_ready(compiled(state, batch))
            seconds.append(time.perf_counter() - began)
    seconds = seconds[2:]
    if args.task == "encode":
        loss, finite = None, bool(np.isfinite(np.asarray(result)).all())
    else:
        loss = float(metrics["loss"])
        finite = bool(np.isfinite([loss, float(metrics["grad_norm"])]).all())
    median = statistics.median(seconds)
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    # An encoder's operations have no closed form here yet: its MFU is left out.
    known = peak and args.task != "encode"
    stats = device.memory_stats() or {}
    memory = compiled.memory_analysis()
    measured = {
        "clips_per_second": args.batch / median,
        "ms_per_step": 1e3 * median,
        "ms_of_each_step": [1e3 * x for x in seconds],
        "mfu": args.batch / median * task.train_flops / (peak * mesh.size) if known else None,
        # On CPUs that of the whole process: in kilobytes on Linux.
        "peak_memory_bytes": stats["peak_bytes_in_use"]
        if "peak_bytes_in_use" in stats
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": compile_seconds,
        "loss": loss,
        "finite": finite,
        "model": args.model,
        "task": args.task,
        "batch": args.batch,
        "run": {**config.run.to_dict(), "compute": task.facts["compute"]},
        "environment": {
            "device": f"{mesh.size} x {device.device_kind}",
            "machine": platform.platform(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": version("flax"),
            "date": time.strftime("%Y-%m-%d"),
        },
    }
    print(f"{args.task}, ViT-{args.model}, {args.batch} clips; {task.facts['compute']}")
    print(
        f"  {measured['clips_per_second']:.4g} clips/s, {1e3 * median:.4g} ms a step "
        f"({1e3 * min(seconds):.4g} to {1e3 * max(seconds):.4g} in {len(seconds)})"
    )
    print(f"  compiled in {compile_seconds:.3g} s, loss {loss}, finite: {finite}")
    print(
        f"  {measured['peak_memory_bytes'] / 1e9:.3g} GB at most, temporaries "
        f"{memory.temp_size_in_bytes / 1e9:.3g} GB; MFU {measured['mfu'] or 'not known'}"
    )
    if args.json:
        Path(args.json).write_text(json.dumps(measured, indent=1) + "\n")
    if not finite:
        raise UserError("the loss or a gradient is not finite: try --config.run.attention=xla")
