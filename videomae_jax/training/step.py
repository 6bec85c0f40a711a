"""The state of a run, and the pure function that takes one training step.

`jit_steps` compiles it, and the evaluation of one batch.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.sharding import batch_sharding, path_name, state_sharding
from videomae_jax.errors import UserError
from videomae_jax.tasks.task import Batch, Params, Sums, Task

if TYPE_CHECKING:  # it imports PyAV, which is only needed where videos are read
    from videomae_jax.data.samplers import ClipSampler

# cuBLAS adds biases and residuals as part of a product. When XLA compares it with its Triton
# kernels, it times products without them, and then adds them in a separate pass over memory.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}

# Random streams, folded into the key of the run.
INIT, STEP = range(2)


class TrainState(NamedTuple):
    """Everything that a run needs to resume; `step` is also the position in the data.

    skipped: number of non-finite steps in a row, up to now. ema: the moving average of the
    parameters, or None.
    """

    step: jax.Array  # int32
    params: Params  # float32
    opt_state: Any  # float32
    skipped: jax.Array  # int32
    ema: Params | None = None  # float32


def make_state(
    task: Task, optimizer: optax.GradientTransformation, *, seed: int, ema: bool = False
) -> TrainState:
    """Return the state before the first step. ema: whether it has a moving average."""
    params = task.init(jax.random.fold_in(jax.random.key(seed), INIT))
    zero = jnp.zeros([], jnp.int32)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(zero, params, optimizer.init(params), zero, average)


def put_params(state: TrainState, params: Params) -> TrainState:
    """Return a state before its first step with other parameters, sharded like its own."""

    def put(new, old):
        if new is old:
            return old
        new = np.asarray(new)
        return jax.make_array_from_callback(new.shape, old.sharding, lambda part: new[part])

    params = jax.tree.map(put, params, state.params)
    # A copy, because the whole state is donated.
    average = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state._replace(params=params, ema=average)


def put_teacher(params: Params, abstract_teacher: Params) -> tuple[Params, int]:
    """Return the parameters of a teacher on the devices, and a digest of them.

    params: of its checkpoint, which may have more, such as a decoder. abstract_teacher: the dtypes
    and shardings. The digest is the CRC-32 of what is used, before it is cast. Raises UserError if
    a parameter is missing or has another shape.
    """
    digest = 0
    found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def put(path, wanted):
        nonlocal digest
        name = path_name(path)
        if name not in found or found[name].shape != wanted.shape:
            held = f"has {name} {found[name].shape}" if name in found else f"has no {name}"
            raise UserError(f"the checkpoint of the teacher {held}: it needs {wanted.shape}")
        values = np.ascontiguousarray(found[name])
        digest = zlib.crc32(values.data, digest)
        values = values.astype(wanted.dtype)
        return jax.make_array_from_callback(
            wanted.shape, wanted.sharding, lambda part: values[part]
        )

    return jax.tree_util.tree_map_with_path(put, abstract_teacher), digest


def train_step(
    state: TrainState,
    batch: Batch,
    teacher: Params | None = None,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulation: int,
    ema_decay: optax.Schedule | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step; return the new state and its metrics, scalars.

    teacher: parameters, if the task has a teacher. ema_decay: see `optim.average_decay`. A
    non-finite loss or gradient changes only `step` and `skipped`.
    """
    key = jax.random.fold_in(jax.random.key(seed), STEP)
    key = jax.random.fold_in(key, state.step)
    frozen = {"average": state.ema} if task.average_decay else {}
    frozen |= {"teacher": teacher} if task.teacher else {}
    grads, sums = _gradients(
        state.params, frozen, batch, key, train_sums=task.train_sums, parts=accumulation
    )
    # Divide only here, so that each part of the batch is weighted by its count.
    grads = jax.tree.map(lambda g: g / sums["count"], grads)
    metrics = task.summarize(sums)
    norm = optax.tree.norm(grads)
    lr = schedule(state.step)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

    def apply(state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            # That of the next step, which reads this average.
            old = ema_decay(state.step + 1)
            ema = jax.tree.map(lambda a, p: old * a + (1 - old) * p, ema, params)
        zero = jnp.zeros_like(state.skipped)
        return TrainState(state.step + 1, params, opt_state, zero, ema)

    def skip(state):
        return state._replace(step=state.step + 1, skipped=state.skipped + 1)

    def branch(state):
        return jax.lax.cond(finite, apply, skip, state)

    def choose(state):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), apply(state), skip(state))

    # On CPUs `where` would keep a copy of the old state. On a GPU a branch makes the host wait for
    # the device, and `where` is fused into the kernels of the update.
    state = jax.lax.platform_dependent(state, cpu=branch, default=choose)
    return state, {**metrics, "lr": lr, "grad_norm": norm, "skipped": state.skipped}


def _gradients(
    params: Params,
    frozen: Mapping[str, Params],
    batch: Batch,
    key: jax.Array,
    *,
    train_sums: Callable[..., Sums],
    parts: int,
) -> tuple[Params, Sums]:
    """Return the gradients of the summed error and all sums, accumulated over `parts` parts.

    frozen: other parameters, by their keywords of `train_sums`; nothing has a gradient to them.
    """

    def part_gradients(params, frozen, part, key):
        def error(params):
            sums = train_sums(params, part, key, **jax.lax.stop_gradient(frozen))
            return sums["error"], sums

        return jax.grad(error, has_aux=True)(params)

    def accumulate(params, frozen, batch, key):
        # A part is every parts-th clip, not consecutive clips: it then has the same number of
        # clips on each device, and no clip moves between devices.
        batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        first = jax.tree.map(lambda x: x[0], batch)
        shapes = jax.eval_shape(part_gradients, params, frozen, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, part):
            return jax.tree.map(jnp.add, total, part_gradients(params, frozen, part, key)), None

        return jax.lax.scan(add, zeros, batch)[0]

    if parts == 1:
        return part_gradients(params, frozen, batch, key)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return accumulate(params, frozen, batch, key)

    # Along "data" each device adds up its own parts, with one all-reduce per step. The partitioner
    # would insert one after every part.
    def accumulate_apart(params, frozen, batch, key):
        return jax.lax.psum(accumulate(params, frozen, batch, key), "data")

    return jax.shard_map(
        accumulate_apart,
        axis_names={"data"},
        in_specs=(P(), P(), P("data"), P()),
        out_specs=P(),
        check_vma=False,
    )(params, frozen, batch, key)


def abstract_batch(
    sampler: "ClipSampler", clips: int, mesh: Mesh, *, labels: np.ndarray | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings of the training batches of `data.pipeline.clip_batches`.

    clips: of one step, over all devices. labels: those of `Videos`, of any number of videos.
    """

    def leaf(dtype, *shape):
        return jax.ShapeDtypeStruct((clips, *shape), dtype, sharding=batch_sharding(mesh))

    batch = {name: leaf(dtype, *shape) for name, (shape, dtype) in sampler.spec.items()}
    batch |= {"id": leaf(jnp.int32), "row": leaf(jnp.int32)}
    if labels is not None:
        batch["label"] = leaf(labels.dtype, *labels.shape[1:])
    return batch


class Rows(NamedTuple):
    """The outputs of an evaluation batch, for metrics that no sum gives."""

    ids: jax.Array  # int32 [B]
    kept: jax.Array  # bool [B], or [B, M] of boxes: whether the clip is valid, the box present
    values: jax.Array  # [B, ...], or [B, M, ...] of boxes; see `Task.outputs`


class Steps(NamedTuple):
    """The jitted functions of a run, and the shapes of its state."""

    init: jax.stages.Wrapped  # () -> TrainState
    # (TrainState, Batch, *teacher) -> (TrainState, metrics); `teacher` is () or (Params,)
    train: jax.stages.Wrapped
    evaluate: jax.stages.Wrapped  # (Params, Batch, *teacher) -> (Sums, Rows | None)
    abstract_state: TrainState  # ShapeDtypeStructs with shardings
    abstract_teacher: tuple[Params, ...]  # likewise: () or (Params,)


def jit_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    seed: int,
    accumulation: int,
    ema_decay: optax.Schedule | None = None,
) -> Steps:
    """Return the functions of a run, jitted with their shardings.

    ema_decay: see `optim.average_decay`. `train` donates its state. `evaluate` returns scalar sums
    over the clips whose batch["valid"] is True and, if the task has `outputs`, the `Rows` of all
    clips, replicated on every process.
    """

    def init():
        return make_state(task, optimizer, seed=seed, ema=ema_decay is not None)

    def train(state, batch, *teacher):
        return train_step(
            state,
            batch,
            *teacher,
            task=task,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            accumulation=accumulation,
            ema_decay=ema_decay,
        )

    def evaluate(params, batch, *teacher):
        frozen = dict(zip(["teacher"], teacher, strict=False))
        sums = task.eval_sums(params, batch, **frozen)
        # Not a product: the value of an invalid clip may be NaN.
        sums = {k: jnp.where(batch["valid"], v, 0).sum() for k, v in sums.items()}
        if task.outputs is None:
            return sums, None
        kept = batch["valid"]
        if "present" in batch:
            kept = kept[:, None] & batch["present"]
        return sums, Rows(batch["id"], kept, task.outputs(params, batch, **frozen))

    def place(shapes, sharding):
        return jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
            shapes,
            sharding,
        )

    shapes = jax.eval_shape(init)
    sharding = state_sharding(shapes, mesh)
    frozen_shapes = (task.teacher.params,) if task.teacher else ()
    frozen = tuple(state_sharding(tree, mesh) for tree in frozen_shapes)
    replicated = NamedSharding(mesh, P())
    batch = batch_sharding(mesh)
    return Steps(
        # Initialized on its devices: no host ever holds the whole tree.
        init=jax.jit(init, out_shardings=sharding),
        train=jax.jit(
            train,
            in_shardings=(sharding, batch, *frozen),
            out_shardings=(sharding, replicated),
            donate_argnames="state",
            compiler_options=COMPILER_OPTIONS.get(mesh.devices.flat[0].platform),
        ),
        evaluate=jax.jit(
            evaluate,
            in_shardings=(sharding.params, batch, *frozen),
            out_shardings=replicated,
        ),
        abstract_state=place(shapes, sharding),
        abstract_teacher=place(frozen_shapes, frozen),
    )
