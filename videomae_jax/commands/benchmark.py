"""Time training steps on synthetic clips, or parts of a step; compare with PyTorch.

The step is that of `videomae train` with its optimizer, on clips that already have the size of the
model; fine-tuning is timed without augmentation. --config.KEY=VALUE overrides keys of the recipe.

examples:
  videomae benchmark --model s --batch 16
  videomae benchmark --what attention --device gpu --json attention.json
  videomae benchmark --task finetune --peer transformers --peer-python ~/torch/bin/python
  videomae benchmark --model l --config.run.remat=dots
"""

import argparse
from typing import TYPE_CHECKING, Any

from videomae_jax.commands import options
from videomae_jax.errors import UserError

if TYPE_CHECKING:
    from videomae_jax.diagnostics.step_time import Job

# The keys of models.vit.SIZES, whose import would start JAX before --device is known.
MODELS = ("tiny", "s", "b", "l", "h", "g")
DEVICES = ("auto", "cpu", "gpu", "tpu")
PEERS = ("none", "transformers", "transformers-compile")
WHAT = ("step", "attention", "feed", "resize", "augment", "end-to-end")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--what",
        default="step",
        choices=WHAT,
        help="step: a training step; attention: one attention layer; feed: the transfer of clips "
        "to the device; resize: on the host and on the device; augment: that of "
        "fine-tuning, beside the step without it; end-to-end: feed and step "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--model", default="b", choices=MODELS, help="size of the ViT (default: %(default)s)"
    )
    parser.add_argument(
        "--task",
        default="pretrain",
        choices=("pretrain", "finetune", "encode"),
        help="encode: only the features of clips (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=8,
        metavar="N",
        help="clips in a step, on all devices (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=10,
        metavar="N",
        help="number of timed steps (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=DEVICES,
        help="platform to run on (default: the one that JAX finds)",
    )
    parser.add_argument(
        "--peer",
        default="none",
        choices=PEERS,
        help="also time the PyTorch model of transformers, in turns with this one, with the same "
        "weights, clips, masks and loss (default: %(default)s)",
    )
    parser.add_argument(
        "--peer-python",
        metavar="PYTHON",
        help="a Python interpreter with torch and transformers, for --peer",
    )
    options.add_json(parser)
    options.add_overrides(parser)


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import os

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
    from videomae_jax.diagnostics.environment import describe_environment
    from videomae_jax.diagnostics.step_time import Job

    disable_async_dispatch()
    job = Job(args.model, args.task, args.batch, tuple(args.overrides))
    try:
        # With a peer, leave the device to the timed processes.
        device = jax.devices()[0].device_kind if args.peer == "none" else None
    except RuntimeError as problem:
        raise UserError(f"--device {args.device}: {str(problem).splitlines()[0]}") from None

    measure = {
        "step": _step,
        "attention": _attention,
        "feed": _feed,
        "resize": _resize,
        "augment": _augment,
        "end-to-end": _end_to_end,
    }[args.what]
    result, text = (measure if args.peer == "none" else _beside_peer)(job, args)
    result |= {"what": args.what, "model": args.model, "task": args.task, "batch": args.batch}
    where = describe_environment() | {"device": device} | result.get("environment", {})
    result["environment"] = where
    print(f"{args.what}, {args.task}, ViT-{args.model}, {args.batch} clips; {where['device']}")
    print(text)
    options.write_json(args.json, result)
    if not result.get("finite", True):
        raise UserError("the loss or a gradient is not finite: try --config.run.attention=xla")


def _attention(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    import jax

    from videomae_jax.diagnostics.stage_time import time_attention

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    rows = time_attention(batch=job.batch, repeats=args.repeats, dtype=dtype)
    lines = ["  attention  tokens  head width  forward ms  forward and backward ms"]
    lines += [
        f"  {row['attention']:9}  {row['tokens']:6}  {row['head_width']:10}"
        f"  {row['forward_ms']:10.4g}  {row['both_ms']:23.4g}"
        for row in rows
    ]
    return {"dtype": dtype, "rows": rows}, "\n".join(lines)


def _feed(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from videomae_jax.diagnostics.stage_time import time_job_feed

    result = time_job_feed(job, repeats=args.repeats)
    return result, (
        f"  {result['clips_per_second']:.4g} clips/s from the host to the device, "
        f"{result['bytes_per_second'] / 1e9:.3g} GB/s"
    )


def _resize(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from videomae_jax.diagnostics.stage_time import time_job_resize
    from videomae_jax.diagnostics.step_time import job_config

    result, clip = time_job_resize(job, repeats=args.repeats), job_config(job).clip
    source_height, source_width = result["source"]
    return result, (
        f"  {source_height} x {source_width} to {clip.height} x {clip.width}, "
        f"{clip.frames} frames\n"
        f"  on the host {result['host_ms']:.3g} ms per clip in one thread, on the device "
        f"{result['device_ms']:.3g} ms ({result['device_cpu_ms']:.3g} ms of all host threads)\n"
        f"  of noise, {result['equal']:.1%} of the values are equal; the others differ by at most "
        f"{result['most']}"
    )


def _augment(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from videomae_jax.diagnostics.stage_time import time_job_augment

    if job.task != "finetune":
        raise UserError(f"--what augment times fine-tuning, not {job.task}: use --task finetune")
    result = time_job_augment(job, repeats=args.repeats)
    height, width = result["canvas"]
    return result, (
        f"  images of {height} x {width}\n"
        f"  augmentation {result['augment_ms']:.4g} ms per clip, CPU time of all threads "
        f"{result['augment_cpu_ms']:.4g} ms, temporaries "
        f"{result['augment_temporary_bytes'] / 1e9:.3g} GB\n"
        f"  the rest of the step {result['step_ms']:.4g} ms per clip, CPU time "
        f"{result['step_cpu_ms']:.4g} ms, temporaries {result['step_temporary_bytes'] / 1e9:.3g} "
        f"GB\n"
        f"  share of the augmentation {result['share']:.1%} of the CPU time; peak "
        f"{result['peak_memory_bytes'] / 1e9:.3g} GB"
    )


def _end_to_end(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from videomae_jax.diagnostics.stage_time import time_end_to_end
    from videomae_jax.diagnostics.step_time import build_bench

    bench = build_bench(job)
    result: dict[str, Any] = dict(time_end_to_end(bench, repeats=args.repeats))
    result |= {"environment": {"device": bench.facts["device"]}, **bench.after()}
    return result, (
        f"  {result['clips_per_second']:.4g} clips/s end to end, waiting for clips "
        f"{result['waiting_share']:.1%} of the time"
    )


def _step(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from videomae_jax.diagnostics.step_time import time_steps

    result = time_steps(job, repeats=args.repeats)
    return result, _step_text(result)


def _beside_peer(job: "Job", args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from videomae_jax.diagnostics.comparison import compare

    result = compare(job, peer=args.peer, peer_python=args.peer_python, repeats=args.repeats)
    peer, ratios = result["peer"], result["ratio_of_each_pair"]
    return result, (
        f"{_step_text(result)}\n"
        f"  {args.peer}: {peer['clips_per_second']:.4g} clips/s, "
        f"{peer['ms_per_step']:.4g} ms per step, peak {peer['peak_memory_bytes'] / 1e9:.3g} GB\n"
        f"  {result['ratio']:.3g} x its speed (pairs {min(ratios):.3g} to {max(ratios):.3g}); "
        f"first losses {result['first_loss']:.6f} and {peer['first_loss']:.6f}"
    )


def _step_text(result: dict[str, Any]) -> str:
    times = result["ms_of_each_step"]
    return (
        f"  {result['run']['compute']}\n"
        f"  {result['clips_per_second']:.4g} clips/s, {result['ms_per_step']:.4g} ms per step "
        f"({min(times):.4g} to {max(times):.4g} in {len(times)})\n"
        f"  compiled in {result['compile_seconds']:.3g} s, loss {result['loss']}, "
        f"finite: {result['finite']}\n"
        f"  peak {result['peak_memory_bytes'] / 1e9:.3g} GB, temporaries "
        f"{result['temporary_bytes'] / 1e9:.3g} GB; MFU {result['mfu'] or 'unknown'}"
    )
