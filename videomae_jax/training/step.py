"""The state of a run and the pure functions that move it on by one step.

This is where jit happens, once for training and once for evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.sharding import batch_sharding, state_sharding
from videomae_jax.tasks.task import Batch, Params, Sums, Task

# cuBLAS adds biases and residuals itself. Where XLA may try its own Triton kernels against it, the
# products are timed without, and what is added becomes a pass over memory of its own.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}

# Named streams of randomness, folded into the run's key.
INIT, STEP = range(2)


class TrainState(NamedTuple):
    """Everything a run needs to go on; `step` is also the position in the data.

    skipped: non-finite steps in a row, ended by the first finite one. ema: a moving average of
    the parameters, None where none is kept.
    """

    step: jax.Array  # int32
    params: Params  # float32
    opt_state: Any  # float32
    skipped: jax.Array  # int32
    ema: Params | None = None  # float32


def make_state(
    task: Task, optimizer: optax.GradientTransformation, *, seed: int, ema: bool = False
) -> TrainState:
    """Initialize a state; trace it with `jax.eval_shape` for its shapes alone."""
    params = task.init(jax.random.fold_in(jax.random.key(seed), INIT))
    zero = jnp.zeros([], jnp.int32)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(zero, params, optimizer.init(params), zero, average)


def put_params(state: TrainState, params: Params) -> TrainState:
    """Give a state that has not stepped yet other parameters, laid out as its own are."""

    def put(new, old):
        if new is old:
            return old
        new = np.asarray(new)
        return jax.make_array_from_callback(new.shape, old.sharding, lambda part: new[part])

    params = jax.tree.map(put, params, state.params)
    # A copy, because the state is donated as a whole.
    average = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state._replace(params=params, ema=average)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulation: int,
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step; a non-finite loss or gradient changes nothing but `skipped`."""
    key = jax.random.fold_in(jax.random.key(seed), STEP)
    key = jax.random.fold_in(key, state.step)
    grads, sums = _gradients(state.params, batch, key, task=task, parts=accumulation)
    # Sums over the whole batch until here, so that parts of unequal counts weigh as they should.
    grads = jax.tree.map(lambda g: g / sums["count"], grads)
    metrics = task.summarize(sums)
    norm = optax.tree.norm(grads)
    lr = schedule(state.step)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

    def move(state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, ema, params)
        zero = jnp.zeros_like(state.skipped)
        return TrainState(state.step + 1, params, opt_state, zero, ema)

    def skip(state):
        return state._replace(step=state.step + 1, skipped=state.skipped + 1)

    def branch(state):
        return jax.lax.cond(finite, move, skip, state)

    def choose(state):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), move(state), skip(state))

    # On CPUs choosing between old and new values keeps a copy of the state. On a GPU a branch
    # makes the host wait for the device; there the choice is part of the update's kernels.
    state = jax.lax.platform_dependent(state, cpu=branch, default=choose)
    return state, {**metrics, "lr": lr, "grad_norm": norm, "skipped": state.skipped}


def _gradients(
    params: Params, batch: Batch, key: jax.Array, *, task: Task, parts: int
) -> tuple[Params, Sums]:
    """Return gradients of the summed error, and all sums, over the batch in `parts` parts."""

    def part_gradients(params, part, key):
        def error(params):
            sums = task.train_sums(params, part, key)
            return sums["error"], sums

        return jax.grad(error, has_aux=True)(params)

    def accumulate(params, batch, key):
        # Every parts-th clip, not consecutive ones: a part then takes equally many clips from
        # each device and nothing moves between devices.
        batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        first = jax.tree.map(lambda x: x[0], batch)
        shapes = jax.eval_shape(part_gradients, params, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, part):
            return jax.tree.map(jnp.add, total, part_gradients(params, part, key)), None

        return jax.lax.scan(add, zeros, batch)[0]

    if parts == 1:
        return part_gradients(params, batch, key)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return accumulate(params, batch, key)

    # Along "data" each device adds up its own parts, and all meet once a step: the partitioner
    # would have them meet after every part.
    def accumulate_apart(params, batch, key):
        return jax.lax.psum(accumulate(params, batch, key), "data")

    return jax.shard_map(
        accumulate_apart,
        axis_names={"data"},
        in_specs=(P(), P("data"), P()),
        out_specs=P(),
        check_vma=False,
    )(params, batch, key)


def abstract_batch(
    sampler: Callable, clips: int, mesh: Mesh, *, labelled: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings of the batches that `data.pipeline.clip_batches` makes.

    clips: of one step, over all devices. labelled: whether the videos have labels.
    """

    def leaf(dtype, *shape):
        return jax.ShapeDtypeStruct((clips, *shape), dtype, sharding=batch_sharding(mesh))

    batch = {"video": leaf(jnp.uint8, *sampler.shape), "id": leaf(jnp.int32)}
    batch["row"] = leaf(jnp.int32)
    if labelled:
        batch["label"] = leaf(jnp.int32)
    if sampler.sized:
        batch["size"] = leaf(jnp.int32, 2)
    return batch


class Steps(NamedTuple):
    """The jitted functions of a run and the layout of its state."""

    init: jax.stages.Wrapped  # () -> TrainState
    train: jax.stages.Wrapped  # (TrainState, Batch) -> (TrainState, metrics)
    evaluate: jax.stages.Wrapped  # (Params, Batch) -> Sums
    abstract_state: TrainState  # ShapeDtypeStructs with shardings


def jit_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    seed: int,
    accumulation: int,
    ema_decay: float = 0.0,
) -> Steps:
    """Give every function its shardings; `train` donates the state it is given.

    ema_decay: what the moving average keeps of itself in a step; 0 is no average.
    `evaluate` returns scalar sums over the clips whose batch["valid"] is True.
    """

    def init():
        return make_state(task, optimizer, seed=seed, ema=ema_decay > 0)

    def train(state, batch):
        return train_step(
            state,
            batch,
            task=task,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            accumulation=accumulation,
            ema_decay=ema_decay,
        )

    def evaluate(params, batch):
        sums = task.eval_sums(params, batch)
        # where, not a product: an invalid clip may have given NaN.
        return {k: jnp.where(batch["valid"], v, 0).sum() for k, v in sums.items()}

    shapes = jax.eval_shape(init)
    sharding = state_sharding(shapes, mesh)
    replicated, batch = NamedSharding(mesh, P()), batch_sharding(mesh)
    return Steps(
        # Initialized where it will live: no host ever holds the whole tree.
        init=jax.jit(init, out_shardings=sharding),
        train=jax.jit(
            train,
            in_shardings=(sharding, batch),
            out_shardings=(sharding, replicated),
            donate_argnames="state",
            compiler_options=COMPILER_OPTIONS.get(mesh.devices.flat[0].platform),
        ),
        evaluate=jax.jit(evaluate, in_shardings=(sharding.params, batch), out_shardings=replicated),
        abstract_state=jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
            shapes,
            sharding,
        ),
    )
