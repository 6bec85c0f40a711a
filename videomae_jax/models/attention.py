"""Softmax attention, in several implementations behind one function.

"xla"      matrix products with a float32 softmax; runs everywhere
"chunked"  holds no N x N array: one head at a time, one block of queries at a time, recomputed
           in the backward pass. Few tokens are one batch of all heads. For CPUs and float32
"splash"   the Pallas kernel of JAX for TPUs
"cudnn"    the fused kernel of NVIDIA GPUs, for bfloat16 and float16 only. It is requested by
           name because `jax.nn.dot_product_attention` never chooses it by default
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from videomae_jax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "chunked", "splash", "cudnn")

# The mesh axes that split q, k and v [B, N, heads, d] by clip and by head. A kernel declares its
# own sharding, so the names are needed here; a test compares them with `devices.sharding`.
CLIP_AXES, HEAD_AXES = ("data", "fsdp"), ("tensor",)

# Block size of "chunked", in queries (in keys, in the backward pass): the scores of a block
# against 1,568 tokens are 2.5 MB, about the cache of a core.
CHUNK = 392

# "chunked" multiplies all heads in one batch up to this many queries: the scores of more leave the
# cache, and 16 clips of 288 tokens and 4 heads took 2.5 times as long. The number of clips does not
# decide: the output of a clip would then depend on the others, in its last bits.
BATCHED = 256

# Block size of the TPU kernel, in rows and columns of scores. It pads 1,568 tokens to 1,792;
# a block of 1,024 would pad them to 2,048.
SPLASH_BLOCK, LANES = 896, 128


def choose_implementation(name: str, *, platform: str, dtype: jnp.dtype) -> str:
    """Return the implementation for a platform ("cpu", "gpu", "tpu") and a compute dtype.

    "auto" chooses the fastest, and tests it first if this process has such a device. Any other
    name is returned as it is. Raises UserError if the name is unknown or cannot run there.
    """
    if name not in IMPLEMENTATIONS:
        raise UserError(f"attention {name!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}")
    dtype = jnp.dtype(dtype)
    if needed := lacks(name, platform=platform, dtype=dtype):
        raise UserError(
            f"attention {name!r} needs {needed}, not {platform} and {dtype.name}: use 'auto' or "
            "'xla'"
        )
    if name != "auto":
        return name
    if platform == "cpu" and dtype == jnp.float32:
        return "chunked"
    kernels = ("cudnn", "splash")
    fused = next((k for k in kernels if not lacks(k, platform=platform, dtype=dtype)), "xla")
    return fused if platform != jax.default_backend() else _test_kernel(fused, dtype)


def lacks(name: str, *, platform: str, dtype: jax.typing.DTypeLike) -> str:
    """Return what an implementation needs if it cannot run on a platform, else ""."""
    if name == "cudnn" and not (platform == "gpu" and jnp.dtype(dtype).itemsize == 2):
        return "a GPU and bfloat16"
    return "a TPU" if name == "splash" and platform != "tpu" else ""


@functools.cache
def _test_kernel(name: str, dtype: jnp.dtype) -> str:
    """Return `name` if its gradient is finite on this machine, else log a warning: "xla"."""
    one = jnp.ones([1, 256, 1, 64], dtype)
    try:
        grad = jax.jit(
            jax.grad(lambda x: attend(x, x, x, implementation=name).astype(jnp.float32).sum())
        )(one)
        reason = "" if bool(jnp.isfinite(grad).all()) else "its gradient is not finite"
    except Exception as error:  # drivers and compilers raise many types
        reason = str(error).partition("\n")[0]
    if reason:
        logging.getLogger(__name__).warning("attention %r does not work here: %s", name, reason)
        return "xla"
    return name


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    implementation: str,
    sizes: jax.Array | None = None,
) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v, of the shape and dtype of q.

    q: [B, n, heads, d]. k, v: [B, N, heads, d]. implementation: one that
    `choose_implementation` returned. sizes: float32 [B, N], how many equal keys each key stands
    for; with it, "cudnn" and "splash" are "xla".
    """
    bias = None if sizes is None else jnp.log(sizes)
    if implementation == "cudnn" and bias is None:
        return _on_each_device(_attend_cudnn, q, k, v)
    if implementation == "chunked" and q.shape[1] > BATCHED:
        if bias is None:
            return _on_each_device(_attend_chunked, q, k, v)
        # For each head, so that it is split as q, k and v are.
        heads = jnp.broadcast_to(bias[..., None, None], (*k.shape[:3], 1))
        return _on_each_device(_attend_chunked, q, k, v, heads)
    if implementation == "splash" and bias is None:
        return _on_each_device(_attend_splash, q, k, v)
    q, layout = q * q.shape[-1] ** -0.5, "b{}hd"
    if implementation == "chunked":
        # A CPU multiplies contiguous matrices up to four times as fast as strided ones.
        q, k, v, layout = *(x.swapaxes(1, 2) for x in (q, k, v)), "bh{}d"
    queries, keys = layout.format("n"), layout.format("m")
    scores = jnp.einsum(f"{queries},{keys}->bhnm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum(f"bhnm,{keys}->{queries}", weights, v)
    return out.swapaxes(1, 2) if implementation == "chunked" else out


def _on_each_device(function, q: jax.Array, *others: jax.Array) -> jax.Array:
    """Apply a function of q, k, v and more of [B, N, heads, ...] on each device to its own part.

    The partitioner cannot split loops and kernels; it would gather all clips on all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(q, *others)
    clips, heads = _divide(CLIP_AXES, q.shape[0]), _divide(HEAD_AXES, q.shape[2])
    spec = P(clips, None, heads, None)
    split = jax.shard_map(
        function,
        axis_names=set(mesh.auto_axes),
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    return split(q, *others)


def constrain_batch_sharding(x: jax.Array) -> jax.Array:
    """Constrain [B, N, D] so that each device has whole tokens of its own clips.

    If the parameters are split over the same mesh axes as the clips, the partitioner then
    gathers parameters. Otherwise it might split the tokens like the parameters, and move
    activations in every layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(_divide(CLIP_AXES, x.shape[0]), None, None))


def _divide(axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Return those of the mesh axes that can split a dimension of `size`, or None.

    None if the size is not divisible. Axes that an enclosing `shard_map` has already split are
    left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in axes if axis in mesh.auto_axes)
    return None if size % math.prod(mesh.shape[axis] for axis in axes) else axes


def _attend_chunked(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Attend head by head; bias: float32 [B, N, heads, 1], added to the scores of the keys."""
    batch, _, heads, width = q.shape
    # A softmax and sums over blocks in bfloat16 would lose a digit of the gradients.
    dtype = jnp.promote_types(q.dtype, jnp.float32)

    # One matrix product at a time, over contiguous [N, d] matrices and on all cores. Batched
    # products, or products of strided heads, are slower.
    def rows(x):
        return x.astype(dtype).transpose(0, 2, 1, 3).reshape(batch * heads, -1, x.shape[-1])

    each = (rows(q * width**-0.5), rows(k), rows(v))
    if bias is None:
        out = jax.lax.map(lambda head: _attend_head(*head), each)
    else:  # only in inference, which needs no gradient of its own
        out = jax.lax.map(lambda head: _attend_head_forward(*head)[0], (*each, rows(bias)))
    return out.reshape(batch, heads, -1, width).transpose(0, 2, 1, 3).astype(q.dtype)


def _attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scale = q.shape[-1] ** -0.5
    return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")


@jax.custom_vjp
def _attend_head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(q k^T) v of one head: q is float32 [n, d], k and v are [N, d]."""
    return _attend_head_forward(q, k, v)[0]


def _attend_head_forward(q, k, v, bias=None):
    outputs, norms = [], []
    for block in _blocks(len(q)):
        scores = q[block] @ k.T
        if bias is not None:
            scores += bias.T
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        outputs.append(weights @ v / total)
        norms.append((top + jnp.log(total))[:, 0])
    out, norm = jnp.concatenate(outputs), jnp.concatenate(norms)
    return out, (q, k, v, out, norm)


def _attend_head_backward(saved, grad):
    q, k, v, out, norm = saved
    # The sum that the gradient of a softmax subtracts, from the output instead of the weights
    # (FlashAttention, 2205.14135).
    inner = (grad * out).sum(-1)
    # dq as [d, n]: a product with the transposed block would take 1.5 times as long as the other
    # four.
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
    """Divide `count` rows into the fewest blocks of at most CHUNK rows, of about equal size."""
    size = -(-count // -(-count // CHUNK))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _attend_splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Run the Pallas kernel; interpret: as plain JAX operations, on any device."""
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

    # Tokens attend to their own segment only, so the tokens of the clip ignore the padding.
    segments = splash.SegmentIds(
        q=(jnp.arange(queries) >= q.shape[1]).astype(jnp.int32),
        kv=(jnp.arange(keys) >= k.shape[1]).astype(jnp.int32),
    )
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(
        heads_first(q * width**-0.5, queries), heads_first(k, keys), heads_first(v, keys)
    )
    return out.transpose(0, 2, 1, 3)[:, : q.shape[1]]


def _padding(count: int) -> tuple[int, int]:
    """Return the padded number of rows, and a block size that divides it."""
    block = min(SPLASH_BLOCK, _round_up(count, LANES))
    return _round_up(count, block), block


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
