"""Time one optimizer step, or one pass of the encoder.

The step is the one that `videomae train` runs, optimizer included. Clips already have the size of
the model; fine-tuning runs without augmentation, drop path and label smoothing, so that a peer can
do the same work.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.config import load_recipe
from videomae_jax.devices.chips import peak_flops
from videomae_jax.devices.host_memory import trim_host_memory
from videomae_jax.devices.sharding import batch_devices, batch_sharding, make_mesh
from videomae_jax.errors import UserError
from videomae_jax.inference.network import build_network, outputs
from videomae_jax.models import flops
from videomae_jax.models.masking import draw_mask, mask_to_bool
from videomae_jax.models.tokens import patch_grid
from videomae_jax.tasks import TASKS, pretrain
from videomae_jax.tasks.build import clip_geometry, has_teacher, make_execution
from videomae_jax.tasks.task import Params, Task
from videomae_jax.training.optim import Schedule, make_optimizer, warmup_cosine
from videomae_jax.training.step import INIT, STEP, jit_steps

CLASSES = 400
SEED = 0
WARM_UP = 2  # steps before those that are timed
# The learning rate does not change the time of a step.
SCHEDULE = Schedule(1000, 100, 1e-4, 1e-6)


class Job(NamedTuple):
    """What to time. overrides: those of the command line, --config.KEY=VALUE."""

    model: str
    task: str
    batch: int
    overrides: tuple[str, ...]


class Bench(NamedTuple):
    """A compiled step with its state and its batch on the devices.

    step: runs on a batch, or on the one already on the devices for None, and returns the seconds
    and the loss ("encode": the mean square of the features). facts: what is known before the first
    step. after: returns what is known after the last one. host_batch: in numpy, as a reader
    returns it.
    """

    step: Callable[[dict | None], tuple[float, float]]
    facts: dict[str, Any]
    after: Callable[[], dict[str, Any]]
    host_batch: dict[str, np.ndarray]
    sharding: jax.sharding.NamedSharding


def job_config(job: Job) -> ConfigDict:
    """Return the config of the recipe that a job runs, with the classes of a teacher."""
    recipe = "finetune" if job.task == "finetune" else "pretrain"
    config = load_recipe(recipe, f"{job.model},k400", job.overrides)
    if has_teacher(config):
        # Not at the top: it imports Orbax, and a GPU machine may have JAX, Flax and Optax alone.
        from videomae_jax.interop.teacher import with_teacher

        config = with_teacher(config)
    if job.task != "finetune" or config.model.classes:
        return config
    config = config.copy_and_resolve_references()
    config.model.classes = config.teacher_model.model.classes if config.teacher else CLASSES
    return config.lock()


def random_batch(job: Job, config: ConfigDict) -> dict[str, np.ndarray]:
    """Return a batch of noise with the keys and dtypes of the data pipeline."""
    clip, rows = config.clip, np.arange(job.batch, dtype=np.int32)
    shape = (job.batch, clip.frames, clip.height, clip.width, len(config.model.mean))
    video = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return {"video": video, "id": rows, "row": rows, "label": rows % CLASSES}


def build_bench(job: Job) -> Bench:
    """Compile the step of a job for the devices of this machine, and put its data on them."""
    config = job_config(job)
    mesh = make_mesh(config.mesh)
    devices = batch_devices(mesh)
    if job.batch % devices:
        raise UserError(f"--batch {job.batch} does not divide by {devices} devices: use {devices}")
    batch = random_batch(job, config)
    with jax.set_mesh(mesh):
        task = _task(config)
        here = jax.device_put(batch, batch_sharding(mesh))
        state: Any
        run: Any
        teacher: tuple[Params, ...] = ()
        if job.task == "encode":
            run, state = _encoder(config, task)
        else:
            optimizer, schedule = make_optimizer(config, task), warmup_cosine(SCHEDULE)
            steps = jit_steps(task, optimizer, schedule, mesh, seed=SEED, accumulation=1)
            run, state = steps.train, steps.init()
            if task.teacher:
                from videomae_jax.interop.teacher import load_teacher

                teacher = load_teacher(config, steps)
        began = time.perf_counter()
        compiled = run.lower(state, here, *teacher).compile()
        compile_seconds = time.perf_counter() - began
    trim_host_memory()
    stats: Any = compiled.memory_analysis()

    finite = True

    def step(other=None):
        nonlocal state, finite
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, other or here, *teacher))
        seconds = time.perf_counter() - began
        watched = [float(metrics[key]) for key in ("loss", "grad_norm") if key in metrics]
        finite = finite and bool(np.isfinite(watched).all())
        return seconds, watched[0]

    device = jax.devices()[0]

    def after():
        memory = device.memory_stats() or {}
        peak = memory["peak_bytes_in_use"] if "peak_bytes_in_use" in memory else peak_memory()
        return {"finite": finite, "peak_memory_bytes": peak}

    known = peak_flops(device.device_kind)
    facts = {
        "temporary_bytes": stats.temp_size_in_bytes,
        "compile_seconds": compile_seconds,
        "clip_flops": _clip_flops(job, config, task),
        "peak_flops": known and known * mesh.size,
        "devices": mesh.size,
        "device": f"{mesh.size} x {device.device_kind}",
        "platform": device.platform,
        "dtype": make_execution(config).dtype.name,
        "run": {**config.run.to_dict(), "compute": task.summary["compute"]},
    }
    return Bench(step, facts, after, batch, batch_sharding(mesh))


def time_steps(job: Job, *, repeats: int) -> dict[str, Any]:
    """Time `repeats` steps of a job, after WARM_UP that do not count."""
    bench = build_bench(job)
    timed = [bench.step(None) for _ in range(WARM_UP + repeats)]
    return summarize_steps(job, bench.facts, bench.after(), timed)


def summarize_steps(
    job: Job,
    facts: dict[str, Any],
    after: dict[str, Any],
    timed: list[tuple[float, float]],
) -> dict[str, Any]:
    """Return the figures of timed steps as JSON types.

    facts, after: those of a Bench. timed: (seconds, loss) of each step, the first WARM_UP of which
    do not count.
    """
    seconds = [seconds for seconds, _ in timed[WARM_UP:]]
    median = statistics.median(seconds)
    rate, peak = job.batch / median, facts["peak_flops"]
    return {
        "clips_per_second": rate,
        "ms_per_step": 1e3 * median,
        "ms_of_each_step": [1e3 * x for x in seconds],
        "mfu": rate * facts["clip_flops"] / peak if peak else None,
        "temporary_bytes": facts["temporary_bytes"],
        "compile_seconds": facts["compile_seconds"],
        "loss": None if job.task == "encode" else timed[-1][1],
        "run": facts["run"],
        **after,
        "environment": {"device": facts["device"]},
    }


def write_inputs(job: Job, folder: Path) -> None:
    """Write the inputs of a peer: the initial weights, the batch and the mask of the first step.

    The folder "model" is in the format of transformers. inputs.npz has "video" uint8
    [B, F, H, W, C], "label" int32 [B] and, for pre-training, "hidden" bool [B, N].
    """
    from videomae_jax.interop.checkpoint_files import Checkpoint, save_checkpoint

    config = job_config(job)
    batch, task = random_batch(job, config), _task(config)
    state_key = jax.random.key(SEED)
    params = jax.tree.map(np.asarray, task.init(jax.random.fold_in(state_key, INIT)))
    save_checkpoint(str(folder / "model"), Checkpoint(params, config, (), ""), to="hf")
    arrays = {"video": batch["video"], "label": batch["label"]}
    if job.task == "pretrain":
        clip, kind, ratio = config.clip, config.mask.kind, config.mask.ratio
        grid = patch_grid((clip.frames, clip.height, clip.width), tuple(config.model.patch))
        key = jax.random.fold_in(jax.random.fold_in(state_key, STEP), 0)
        key = jax.random.fold_in(key, pretrain.MASK)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["id"])
        mask = draw_mask(keys, kind, grid=grid, ratio=ratio)
        arrays["hidden"] = np.asarray(mask_to_bool(mask, count=grid[0] * grid[1] * grid[2]))
    np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)


def peak_memory() -> int:
    """Return the peak bytes of main memory of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a process inherits the value of its parent.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _task(config: ConfigDict) -> Task:
    task = TASKS[config.task].build_task(config)
    if config.task == "pretrain":
        return task

    def train_sums(params, batch, key, **teacher):
        return jax.tree.map(jnp.sum, task.eval_sums(params, batch, **teacher))

    return task._replace(train_sums=train_sums)


def _encoder(config: ConfigDict, task: Task) -> tuple[jax.stages.Wrapped, Params]:
    """Return the jitted encoder with the signature of a step, and its weights."""
    network = build_network(config)

    def encode(params, batch):
        features = outputs(network, params, batch["video"])["features"]
        return params, {"loss": jnp.square(features).mean()}

    key = jax.random.fold_in(jax.random.key(SEED), INIT)
    return jax.jit(encode, donate_argnums=0), jax.jit(task.init)(key)


def _clip_flops(job: Job, config: ConfigDict, task: Task) -> float:
    if job.task != "encode":
        return task.train_flops
    network = build_network(config)
    _, tokens, values = clip_geometry(config.clip, network)
    return flops.finetune_flops(network.encoder, tokens=tokens, values=values, classes=0)[0]
