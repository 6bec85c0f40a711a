"""Softmax attention behind one function.

"xla"      plain matrix products with a float32 softmax; runs everywhere
"chunked"  never holds an N x N array: one head at a time, a block of queries at a time, the
           blocks computed again in the backward pass. For CPUs and float32; up to one block of
           tokens it is "xla", which is faster there
"splash"   the Pallas kernel that comes with JAX, for TPUs
"cudnn"    the fused kernel of NVIDIA GPUs, for bfloat16 and float16 only; it must be asked for
           by name: `jax.nn.dot_product_attention` never picks it by itself
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from videomae_jax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "chunked", "splash", "cudnn")

# How q, k and v [B, N, heads, d] are split over a mesh: by clip, and by head. Named here because
# a kernel has to say itself how it is split, and the partitioner follows; a test holds them to
# the axes of `training.sharding`.
CLIP_AXES, HEAD_AXES = ("data", "fsdp"), ("tensor",)

# Queries (keys, in the backward pass) of "chunked" at a time: a block of scores against
# 1,568 tokens is 2.5 MB, about what the cache of a core holds.
CHUNK = 392

# Rows and columns of scores the TPU kernel has on the chip at a time; 1,568 tokens become 2,048
# or, with this, 1,792.
SPLASH_BLOCK, LANES = 896, 128


def choose_implementation(name: str, *, platform: str, dtype: jnp.dtype) -> str:
    """Resolve "auto" for a platform ("cpu", "gpu", "tpu") and a compute dtype.

    A kernel that "auto" would take is tried first, where this process has such a device.
    """
    if name not in IMPLEMENTATIONS:
        raise UserError(f"attention {name!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}")
    dtype = jnp.dtype(dtype)
    needs = {
        "cudnn": ("a GPU and bfloat16", platform == "gpu" and dtype.itemsize == 2),
        "splash": ("a TPU", platform == "tpu"),
    }
    if name in needs and not needs[name][1]:
        raise UserError(
            f"attention {name!r} needs {needs[name][0]}, not {platform} and {dtype.name}: "
            "use 'auto' or 'xla'"
        )
    if name != "auto":
        return name
    if platform == "cpu" and dtype == jnp.float32:
        return "chunked"
    fused = next((kernel for kernel, (_, fits) in needs.items() if fits), "xla")
    return fused if platform != jax.default_backend() else _tried(fused, dtype)


@functools.cache
def _tried(name: str, dtype: jnp.dtype) -> str:
    """Return `name` if its gradient is finite on this machine, else "xla" and a warning."""
    one = jnp.ones([1, 256, 1, 64], dtype)
    try:
        grad = jax.jit(
            jax.grad(lambda x: attend(x, x, x, implementation=name).astype(jnp.float32).sum())
        )(one)
        reason = "" if bool(jnp.isfinite(grad).all()) else "its gradient is not finite"
    except Exception as error:  # of whatever kind a driver or a compiler raises
        reason = str(error).partition("\n")[0]
    if reason:
        logging.getLogger(__name__).warning("attention %r does not work here: %s", name, reason)
        return "xla"
    return name


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v, [B, n, heads, d] as q is; k and v are [B, N, heads, d]."""
    if implementation == "cudnn":
        return _on_each_device(_attend_cudnn, q, k, v)
    if implementation == "chunked" and q.shape[1] > CHUNK:
        return _on_each_device(_attend_chunked, q, k, v)
    if implementation == "splash":
        return _on_each_device(_attend_splash, q, k, v)
    scores = jnp.einsum(
        "bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _on_each_device(function, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Apply a function of q, k, v to the clips and heads each device has.

    Loops and kernels are opaque to the partitioner: it would gather all clips on all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(q, k, v)
    clips, heads = _divide(CLIP_AXES, q.shape[0]), _divide(HEAD_AXES, q.shape[2])
    spec = P(clips, None, heads, None)
    split = jax.shard_map(
        function,
        axis_names=set(mesh.auto_axes),
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    return split(q, k, v)


def constrain_batch_sharding(x: jax.Array) -> jax.Array:
    """Say of [B, N, D] that each device has whole tokens of its own clips.

    Where parameters are split over the axes of the clips too, the partitioner then gathers them;
    it might else split the tokens as the parameters are, and move activations at every layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(_divide(CLIP_AXES, x.shape[0]), None, None))


def _divide(axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """The axes of the mesh in use that `size` things are split over: none if they do not divide.

    Those that a `shard_map` around has split already are not in question.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in axes if axis in mesh.auto_axes)
    return None if size % math.prod(mesh.shape[axis] for axis in axes) else axes


def _attend_chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    batch, _, heads, width = q.shape

    # One matrix product after the other over contiguous [N, d] matrices, each on all cores:
    # batched ones, or ones that read strided heads, are slower.
    def rows(x):
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, width)

    out = jax.lax.map(lambda head: _attend_head(*head), (rows(q * width**-0.5), rows(k), rows(v)))
    return out.reshape(batch, heads, -1, width).transpose(0, 2, 1, 3)


def _attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scale = q.shape[-1] ** -0.5
    return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")


@jax.custom_vjp
def _attend_head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v of one head, float32 [n, d]; k and v [N, d]."""
    return _attend_head_forward(q, k, v)[0]


def _attend_head_forward(q, k, v):
    outputs, norms = [], []
    for block in _blocks(len(q)):
        scores = q[block] @ k.T
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        outputs.append(weights @ v / total)
        norms.append((top + jnp.log(total))[:, 0])
    out, norm = jnp.concatenate(outputs), jnp.concatenate(norms)
    return out, (q, k, v, out, norm)


def _attend_head_backward(saved, grad):
    q, k, v, out, norm = saved
    # What the softmax's gradient subtracts, known without the weights (FlashAttention, 2205.14135).
    inner = (grad * out).sum(-1)
    # dq as [d, n]: the product that takes the block's transpose would otherwise be half again as
    # slow as the other four.
    dq, dk, dv = jnp.zeros_like(q.T), [], []
    for block in _blocks(len(k)):
        weights = jnp.exp(k[block] @ q.T - norm)
        dscores = weights * (v[block] @ grad.T - inner)
        dq += k[block].T @ dscores
        dk.append(dscores @ q)
        dv.append(weights @ grad)
    return dq.T, jnp.concatenate(dk), jnp.concatenate(dv)


_attend_head.defvjp(_attend_head_forward, _attend_head_backward)


def _blocks(count: int) -> list[slice]:
    """Cut `count` rows into as few blocks of at most CHUNK as possible, of about one size."""
    size = -(-count // -(-count // CHUNK))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _attend_splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """interpret: run the kernel as plain JAX operations, on any device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, width = q.shape[2:]
    (queries, block_q), (keys, block_k) = (_padding(x.shape[1]) for x in (q, k))
    kernel = splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_kv_compute=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_kv_dkv_compute=block_k,
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )

    def heads_first(x, padded):
        x = jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    # Tokens attend to their own segment only: those of the clip to each other, not to padding.
    segments = splash.SegmentIds(
        q=(jnp.arange(queries) >= q.shape[1]).astype(jnp.int32),
        kv=(jnp.arange(keys) >= k.shape[1]).astype(jnp.int32),
    )
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(
        heads_first(q * width**-0.5, queries), heads_first(k, keys), heads_first(v, keys)
    )
    return out.transpose(0, 2, 1, 3)[:, : q.shape[1]]


def _padding(count: int) -> tuple[int, int]:
    """Return the rows `count` is padded to, and a block that divides them."""
    block = min(SPLASH_BLOCK, _round_up(count, LANES))
    return _round_up(count, block), block


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
