"""The plain vision transformer: attention, MLP, block, a stack of blocks, and its sizes.

Weights are float32, the compute dtype is a field, LayerNorm statistics and the softmax
are float32 whatever it is.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from videomae_jax.errors import UserError
from videomae_jax.models.attention import attend, keep_clips

xavier = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class Size:
    """The shape of one transformer."""

    width: int
    depth: int
    heads: int
    mlp_width: int


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """An encoder, the decoder the paper pairs it with, and the side of its square patch."""

    encoder: Size
    decoder: Size
    patch: int


def _size(width, depth, heads, *, decoder, mlp_width=None, patch=16):
    decoder_width, decoder_heads, decoder_depth = decoder
    return ModelSize(
        encoder=Size(width, depth, heads, mlp_width or 4 * width),
        decoder=Size(decoder_width, decoder_depth, decoder_heads, 4 * decoder_width),
        patch=patch,
    )


SIZES = {
    "tiny": _size(128, 4, 4, decoder=(64, 2, 2), patch=8),  # for tests and the demo
    "s": _size(384, 12, 6, decoder=(192, 3, 4)),
    "b": _size(768, 12, 12, decoder=(384, 6, 4)),
    "l": _size(1024, 24, 16, decoder=(512, 8, 4)),
    "h": _size(1280, 32, 16, decoder=(640, 8, 4)),  # head_dim 80
    "g": _size(1408, 40, 16, decoder=(512, 8, 4), mlp_width=6144, patch=14),  # VideoMAE V2
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a stack is run; none of it changes the parameters or the mathematics.

    dtype: compute dtype. attention: see `attention.py`, already resolved.
    scan: compile one block and loop over it (fast to compile) or unroll (fast to run).
    remat: "none" keeps every activation; "dots" recomputes all but the matrix products;
    "full" keeps only the input of each block.
    """

    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"
    scan: bool = False
    remat: str = "none"


REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerNorm(nn.Module):
    """LayerNorm as everywhere in the reference: eps 1e-6, a learned scale and bias."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] of any dtype -> [..., D] in the compute dtype, computed in float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return normalize(x, scale, bias).astype(self.dtype)


@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Return (x - mean) / std * scale + bias over the last axis, float32.

    Keeps x and two numbers a row for the gradient, where differentiating the steps one by one
    would keep three arrays like x.
    """
    return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x, scale, bias):
    centred = x.astype(jnp.float32)
    mean = centred.mean(-1, keepdims=True)
    centred -= mean
    # In two passes: the mean of squares less the square of the mean cancels.
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return centred * inverse * scale + bias, (x, mean, inverse, scale)


def _normalize_backward(saved, grad):
    x, mean, inverse, scale = saved
    unit = (x.astype(jnp.float32) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    inner = grad * scale
    along = (inner * unit).mean(-1, keepdims=True)
    dx = inverse * (inner - inner.mean(-1, keepdims=True) - unit * along)
    return dx.astype(x.dtype), (grad * unit).sum(rows), grad.sum(rows)


normalize.defvjp(_normalize_forward, _normalize_backward)


class Dense(nn.Module):
    """A linear layer over the last axis; all others become one before the product.

    As a product of two matrices its gradients need no transposed copies, which XLA makes of
    [B, N, D] on CPUs.
    """

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer | None = nn.initializers.zeros  # None: no bias

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        if self.bias_init is not None:
            y += self.param("bias", self.bias_init, shape[1:]).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
    """Multi-head attention with one fused projection; biases on q and v, never on k."""

    heads: int
    run: Execution

    @nn.compact
    def __call__(
        self, x: jax.Array, last: int | None = None, context: jax.Array | None = None
    ) -> jax.Array:
        """[B, N, D] -> [B, N, D], or of the last tokens alone [B, last, D].

        context: the tokens [B, n, D] that all attend to; None for those of `x` themselves.
        """
        batch, _, width = x.shape
        head = (self.heads, width // self.heads)

        # Kept as [D, 3, heads, d] so that a tensor axis can split the heads. The initializer
        # sees the fused [D, 3 D] matrix, as the reference's does.
        def fused(key, shape):
            return xavier(key, (width, 3 * width)).reshape(shape)

        kernel = self.param("qkv", fused, (width, 3, *head))
        q_bias = self.param("q_bias", nn.initializers.zeros, head)
        v_bias = self.param("v_bias", nn.initializers.zeros, head)
        bias = jnp.stack([q_bias, jnp.zeros_like(q_bias), v_bias], axis=1)
        # One product of matrices, with the heads outermost: a tensor axis still splits them.
        kernel = kernel.astype(self.run.dtype).swapaxes(1, 2)

        def project(x, part):
            matrix, shift = kernel[:, :, part].reshape(width, -1), bias[:, part].reshape(-1)
            y = x.reshape(-1, width) @ matrix + shift.astype(self.run.dtype)
            return jnp.moveaxis(y.reshape(*x.shape[:2], self.heads, -1, head[1]), 3, 0)

        if last is None and context is None:
            q, k, v = project(x, slice(0, 3))
        else:
            queries = x if last is None else x[:, -last:]
            source = x if context is None else context
            (q,), (k, v) = project(queries, slice(0, 1)), project(source, slice(1, 3))
        x = attend(q, k, v, implementation=self.run.attention).reshape(batch, -1, width)
        return Dense(width, self.run.dtype, xavier, name="proj")(x)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x times the normal distribution's integral to x, elementwise.

    Its derivative is computed with it and is all that is kept: one array, not two, and no
    second erf. `jax.nn.gelu` takes the costlier erfc, or is the tanh approximation.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    integral = 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
    density = (2 * math.pi) ** -0.5 * jnp.exp(-0.5 * x * x)
    return x * integral, integral + x * density


def _gelu_backward(derivative, grad):
    return (grad * derivative,)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    hidden: int
    run: Execution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        width = x.shape[-1]
        x = Dense(self.hidden, self.run.dtype, xavier, name="fc1")(x)
        x = gelu(x)
        return Dense(width, self.run.dtype, xavier, name="fc2")(x)


class DropPath(NamedTuple):
    """What one block, or with a leading [depth] axis each of a stack, may leave out.

    rate: float32, the chance that a clip passes a branch by. keys: typed PRNG keys [B], one
    per clip, so that a clip's draw is the same in any batch.
    """

    rate: jax.Array
    keys: jax.Array


def drop_branch(x: jax.Array, drop: DropPath | None, branch: int) -> jax.Array:
    """Zero a branch [B, N, D] of a block for some clips, and scale up the others (1603.09382)."""
    if drop is None:
        return x
    kept = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, branch), 1 - drop.rate)
    )(drop.keys)
    return x * (kept / (1 - drop.rate)).astype(x.dtype)[:, None, None]


class Block(nn.Module):
    """A pre-norm transformer block; with a context its attention is to that alone."""

    size: Size
    run: Execution

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop: DropPath | None,
        last: int | None = None,
        context: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """[B, N, D] -> ([B, N or last, D], None): the carry and output of a scan over blocks."""
        dtype = self.run.dtype
        # Of the same shapes, so the name is what tells the weights of the two apart.
        name = "attn" if context is None else "cross"
        attention = Attention(self.size.heads, self.run, name=name)
        mixed = attention(LayerNorm(dtype, name="norm1")(x), last, context)
        x = keep_clips((x if last is None else x[:, -last:]) + drop_branch(mixed, drop, 0))
        mlp = Mlp(self.size.mlp_width, self.run, name="mlp")
        x = keep_clips(x + drop_branch(mlp(LayerNorm(dtype, name="norm2")(x)), drop, 1))
        return x, None


def apply_blocks(
    x: jax.Array,
    size: Size,
    run: Execution,
    *,
    last: int | None = None,
    context: jax.Array | None = None,
    drop_path: float = 0.0,
    keys: jax.Array | None = None,
) -> jax.Array:
    """Run [B, N, D] through `size.depth` blocks; call it inside a compact module.

    last: return the last tokens alone, [B, last, D]; all others only give the last block its
    keys and values. context: tokens [B, n, D] that every block attends to, in place of its own.
    drop_path: rate of the last block's branches, falling linearly to 0 at the first. keys: typed
    PRNG keys [B]; None drops nothing.
    The parameters stand under "blocks" with a leading [depth] axis, however they are run,
    so checkpoints, sharding rules and conversions know one layout only.
    """
    drop = None
    if keys is not None and drop_path > 0:
        layers = jax.vmap(lambda key: jax.random.split(key, size.depth), out_axes=1)(keys)
        drop = DropPath(np.linspace(0, drop_path, size.depth, dtype=np.float32), layers)
    stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=size.depth,
    )(size, run, name="blocks")
    if stack.is_initializing():
        return stack(x, drop, None, context)[0][:, -(last or x.shape[1]) :]

    # Run as functions of the parameters: a scan of Flax has blocks of one shape only.
    def block(x, layer, context, last):
        params, drop = layer
        return Block(size, run, parent=None).apply({"params": params}, x, drop, last, context)

    if run.remat != "none":
        if run.remat not in REMAT_POLICIES:
            names = ", ".join(["none", *REMAT_POLICIES])
            raise UserError(f"remat {run.remat!r} is unknown: use one of {names}")
        # Unrolled, common-subexpression elimination would undo the recomputation; inside a
        # loop it cannot, and preventing it costs speed.
        block = jax.checkpoint(
            block,
            policy=REMAT_POLICIES[run.remat],
            prevent_cse=not run.scan,
            static_argnums=3,
        )
    layers = (stack.variables["params"], drop)
    if run.scan:

        def body(x, layer):
            return block(x, layer, context, None)

        if last is None:
            return jax.lax.scan(body, x, layers)[0]
        x, _ = jax.lax.scan(body, x, jax.tree.map(lambda leaf: leaf[:-1], layers))
        return block(x, jax.tree.map(lambda leaf: leaf[-1], layers), context, last)[0]
    # Split once: the gradient is then one concatenation, where that of an index is a sum.
    leaves, structure = jax.tree.flatten(layers)
    split = zip(*(_unstack(leaf) for leaf in leaves), strict=True)
    for index, layer in enumerate(map(structure.unflatten, split)):
        x, _ = block(x, layer, context, last if index == size.depth - 1 else None)
    return x


def _unstack(leaf: jax.Array) -> list[jax.Array]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return list(leaf)
    parts = jax.lax.split(jnp.asarray(leaf), (1,) * len(leaf))
    return [part.reshape(part.shape[1:]) for part in parts]
