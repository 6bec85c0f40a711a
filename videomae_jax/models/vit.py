"""The plain vision transformer: attention, MLP, block, stack of blocks, and the model sizes.

Weights are float32. The compute dtype is a field; LayerNorm statistics and the softmax are
always float32.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from videomae_jax.errors import UserError
from videomae_jax.models.attention import attend, constrain_batch_sharding
from videomae_jax.models.merging import merge_similar

xavier = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class Size:
    """The shape of one transformer."""

    width: int  # of a token
    depth: int  # blocks
    heads: int  # of the attention; divides the width
    mlp_width: int  # of the hidden layer of a block's MLP


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """An encoder, the decoder that the paper uses with it, and the side of its square patch."""

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
    """How a stack is executed. It does not change the parameters or the mathematics.

    dtype: compute dtype. attention: an implementation of `attention.py`, not "auto".
    scan: compile one block and loop over it (fast to compile), or unroll (fast to run).
    remat: what to keep for the backward pass. "none" keeps all but cheap results, "dots" keeps
    only matrix products, "full" keeps only the input of each block.
    """

    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"
    scan: bool = False
    remat: str = "none"


REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _scale_and_bias(module: nn.Module, width: int) -> tuple[jax.Array, jax.Array]:
    return (
        module.param("scale", nn.initializers.ones, (width,)),
        module.param("bias", nn.initializers.zeros, (width,)),
    )


class LayerNorm(nn.Module):
    """LayerNorm with a learned scale and bias, and the reference's eps of 1e-6."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize [..., D] of any dtype in float32; returns the compute dtype."""
        scale, bias = _scale_and_bias(self, x.shape[-1])
        return (standardize(x, jnp.float32) * scale + bias).astype(self.dtype)


class Affine(nn.Module):
    """The scale and bias [D] of a LayerNorm, folded into the weights of the next layer.

    `standardize` then replaces the norm. The gradients of scale and bias become sums over
    weights instead of sums over all tokens, which saves three passes over [B, N, D].
    """

    width: int

    @nn.compact
    def __call__(self, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the kernel [D, ...] and bias [...] of norm and layer combined."""
        scale, shift = _scale_and_bias(self, self.width)
        moved = jnp.tensordot(shift, kernel, 1, precision=jax.lax.Precision.HIGHEST)
        return kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1)), bias + moved


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardize(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return (x - mean) / sqrt(variance + 1e-6) over the last axis, computed in float32.

    x: [..., D]. dtype: of the result. Only x is kept for the gradient; automatic
    differentiation would keep three arrays of its size.
    """
    return _standardize(x)[0].astype(dtype)


def _standardize(x):
    centred = x.astype(jnp.float32)
    centred -= centred.mean(-1, keepdims=True)
    # In two passes: the mean of squares minus the square of the mean loses digits.
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return centred * inverse, inverse


def _standardize_forward(x, dtype):
    return standardize(x, dtype), x


def _standardize_backward(dtype, x, grad):
    # Without the barrier the compiler reuses the values of the forward pass. To keep them costs a
    # GPU one more kernel per norm.
    unit, inverse = _standardize(jax.lax.optimization_barrier(x))
    grad = grad.astype(jnp.float32)
    along = (grad * unit).mean(-1, keepdims=True)
    dx = inverse * (grad - grad.mean(-1, keepdims=True) - unit * along)
    return (dx.astype(x.dtype),)


standardize.defvjp(_standardize_forward, _standardize_backward)


class Dense(nn.Module):
    """A linear layer over the last axis, computed as a product of two matrices.

    The other axes are flattened first: the gradients then need no transposed copies, which XLA
    makes of [B, N, D] on CPUs.
    """

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer | None = nn.initializers.zeros  # None: no bias

    @nn.compact
    def __call__(self, x: jax.Array, norm: Affine | None = None) -> jax.Array:
        """Map [..., D] to [..., features] in the compute dtype.

        norm: the norm before this layer, if `x` was only `standardize`d; needs a bias.
        """
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias: jax.Array | None = None
        if self.bias_init is not None:
            bias = self.param("bias", self.bias_init, (self.features,))
        if norm is not None:
            assert bias is not None  # the norm's own bias is added to it
            kernel, bias = norm(kernel, bias)
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)
        if bias is not None:
            y += bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
    """Multi-head attention with one weight array for q, k and v, and no bias for k."""

    heads: int
    run: Execution

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        norm: Affine,
        last: int | None = None,
        context: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the attention of `standardize`d tokens [B, N, D], and the keys.

        The attention is [B, N, D], or [B, last, D], the keys are [B, N or n, heads, d]. norm: the
        norm before this layer. last: compute only the last tokens. context: tokens [B, n, D] to
        attend to, not normalized; None attends to `x` itself. sizes: see `attention.attend`.
        """
        batch, _, width = x.shape
        head = (self.heads, width // self.heads)

        # The shape is [D, 3, heads, d] so that a tensor axis can split the heads. The initializer
        # gets the fused [D, 3 D] matrix, as in the reference.
        def fused(key, shape):
            return xavier(key, (width, 3 * width)).reshape(shape)

        kernel = self.param("qkv", fused, (width, 3, *head))
        q_bias = self.param("q_bias", nn.initializers.zeros, head)
        v_bias = self.param("v_bias", nn.initializers.zeros, head)
        bias = jnp.stack([q_bias, jnp.zeros_like(q_bias), v_bias])

        # Three products instead of one: on a GPU, splitting one result costs more than reading `x`
        # again.
        def project(x, matrix, shift=None):
            y = x.reshape(-1, width) @ matrix.reshape(width, width).astype(self.run.dtype)
            if shift is not None:
                y += shift.reshape(-1).astype(self.run.dtype)
            return y.reshape(*x.shape[:2], *head)

        source, (matrix, shift) = x, norm(kernel, bias)
        q = project(x if last is None else x[:, -last:], matrix[:, 0], shift[0])
        if context is not None:
            source, matrix, shift = context, kernel, bias
        k = project(source, matrix[:, 1])  # the same bias on all keys does not change the softmax
        v = project(source, matrix[:, 2], shift[2])
        x = attend(q, k, v, implementation=self.run.attention, sizes=sizes)
        x = Dense(width, self.run.dtype, xavier, name="proj")(x.reshape(batch, -1, width))
        return x, k + shift[1]


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return the exact GELU, x times the standard normal CDF of x, computed in float32.

    Keeps the derivative for the backward pass, in the dtype of x: one erf per element in all.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    y = x.astype(jnp.float32)
    # `jax.nn.gelu` uses erfc, which is slower, or the tanh approximation.
    cdf = 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))
    slope = cdf + y * jnp.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    return (y * cdf).astype(x.dtype), slope.astype(x.dtype)


gelu.defvjp(_gelu_forward, lambda slope, grad: (slope * grad,))


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    hidden: int
    run: Execution

    @nn.compact
    def __call__(self, x: jax.Array, norm: Affine) -> jax.Array:
        """Apply the MLP to `standardize`d tokens [B, N, D]; norm: the norm before this layer."""
        hidden = gelu(Dense(self.hidden, self.run.dtype, xavier, name="fc1")(x, norm))
        return Dense(x.shape[-1], self.run.dtype, xavier, name="fc2")(hidden)


class DropPath(NamedTuple):
    """Stochastic depth of one block, or with a leading [depth] axis of a stack of blocks.

    rate: float32, the probability that a clip skips a branch. keys: typed PRNG keys [B], one
    per clip, so that the draw of a clip is the same in any batch.
    """

    rate: jax.Array
    keys: jax.Array


def drop_branch(x: jax.Array, drop: DropPath | None, branch: int) -> jax.Array:
    """Set a branch [B, N, D] to zero for some clips, and scale up the others (1603.09382).

    branch: the index of the branch in its block, which selects the random stream.
    """
    if drop is None:
        return x
    kept = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, branch), 1 - drop.rate)
    )(drop.keys)
    return x * (kept / (1 - drop.rate)).astype(x.dtype)[:, None, None]


class Block(nn.Module):
    """A pre-norm transformer block, with self-attention or with attention to a context only."""

    size: Size
    run: Execution

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop: DropPath | None,
        last: int | None = None,
        context: jax.Array | None = None,
        sizes: jax.Array | None = None,
        merge: int = 0,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Map [B, N, D] to ([B, N or last, D], sizes), the carry and output of a scan over blocks.

        See `apply_blocks` and `merge_blocks` for the arguments.
        """
        dtype, width = self.run.dtype, x.shape[-1]
        # The weights of both have the same shapes; only the name distinguishes them.
        name = "attn" if context is None else "cross"
        attention = Attention(self.size.heads, self.run, name=name)
        norm = Affine(width, name="norm1")
        mixed, keys = attention(standardize(x, dtype), norm, last, context, sizes)
        x = constrain_batch_sharding(
            (x if last is None else x[:, -last:]) + drop_branch(mixed, drop, 0)
        )
        if sizes is not None:
            x, sizes = merge_similar(x, keys, sizes, count=merge)
            x = constrain_batch_sharding(x)
        mlp = Mlp(self.size.mlp_width, self.run, name="mlp")
        out = mlp(standardize(x, dtype), Affine(width, name="norm2"))
        x = constrain_batch_sharding(x + drop_branch(out, drop, 1))
        return x, sizes


def apply_blocks(
    x: jax.Array,
    size: Size,
    run: Execution,
    *,
    last: int | None = None,
    context: jax.Array | None = None,
) -> jax.Array:
    """Apply `size.depth` blocks to [B, N, D]; call it inside a compact module.

    last: return only the last tokens, [B, last, D]; in the last block, the other tokens give
    only keys and values. context: tokens [B, n, D] that every block attends to instead of its
    own.
    The parameters are under "blocks" with a leading [depth] axis for any `run`, so there is one
    layout for checkpoints, sharding rules and conversions. Raises UserError for an unknown remat.
    """
    return apply_parts(x, size, run, (size.depth,), last=last, context=context)[-1]


def apply_parts(
    x: jax.Array,
    size: Size,
    run: Execution,
    parts: tuple[int, ...],
    *,
    last: int | None = None,
    context: jax.Array | None = None,
    drop_path: float = 0.0,
    keys: jax.Array | None = None,
) -> list[jax.Array]:
    """Apply blocks as `apply_blocks` does; return the tokens after each part of them.

    parts: the number of blocks of each part, `size.depth` in all. drop_path: the rate of the last
    block, falling linearly to 0 at the first. keys: typed PRNG keys [B] for drop path; None drops
    nothing.
    """
    drop = None
    if keys is not None and drop_path > 0:
        block_keys = jax.vmap(lambda key: jax.random.split(key, size.depth), out_axes=1)(keys)
        rates = np.linspace(0, drop_path, size.depth, dtype=np.float32)
        drop = DropPath(jnp.asarray(rates), block_keys)
    stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=size.depth,
    )(size, run, name="blocks")
    if stack.is_initializing():
        return [stack(x, drop, None, context)[0][:, -(last or x.shape[1]) :]] * len(parts)

    # Blocks as functions of their parameters: with the scan of Flax, all blocks return the same
    # shape, so the last one could not drop tokens.
    def block(x, layer, context, last):
        params, drop = layer
        return Block(size, run, parent=None).apply({"params": params}, x, drop, last, context)

    if run.remat != "none":
        if run.remat not in REMAT_POLICIES:
            names = ", ".join(["none", *REMAT_POLICIES])
            raise UserError(f"remat {run.remat!r} is unknown: use one of {names}")
        # In unrolled blocks, common-subexpression elimination would undo the recomputation.
        # Inside a loop it cannot, and preventing it costs speed.
        block = jax.checkpoint(
            block,
            policy=REMAT_POLICIES[run.remat],
            prevent_cse=not run.scan,
            static_argnums=3,
        )

    def run_part(x, layers, last):
        if run.scan:

            def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
                return block(x, layer, context, None)

            if last is None:
                return jax.lax.scan(body, x, layers)[0]
            x, _ = jax.lax.scan(body, x, jax.tree.map(lambda leaf: leaf[:-1], layers))
            return block(x, jax.tree.map(lambda leaf: leaf[-1], layers), context, last)[0]
        count = len(jax.tree.leaves(layers)[0])
        for number, layer in enumerate(_split(layers, (1,) * count), 1):
            layer = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), layer)
            x, _ = block(x, layer, context, last if number == count else None)
        return x

    outputs = []
    for number, layers in enumerate(_split((stack.variables["params"], drop), parts), 1):
        x = run_part(x, layers, last if number == len(parts) else None)
        outputs.append(x)
    return outputs


def _split(layers: Any, sizes: tuple[int, ...]) -> list[Any]:
    """Split the leading axis of every leaf into parts of these sizes."""
    leaves, structure = jax.tree.flatten(layers)
    # `split`, because its gradient is one concatenation; the gradient of indexing is a sum.
    parts = zip(*(jax.lax.split(jnp.asarray(leaf), sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]


def merge_blocks(
    x: jax.Array, params: Any, size: Size, run: Execution, *, merge: int
) -> tuple[jax.Array, jax.Array]:
    """Apply blocks to [B, N, D], each of which merges tokens: [B, n, D] and sizes, float32 [B, n].

    params: of `apply_blocks`, under "blocks". merge: tokens that each block merges into others,
    see `merging.merge_similar`, or half of them if fewer than twice as many are left. A size is
    the number of tokens of which a token is the mean. For inference: nothing is dropped or
    recomputed. Raises UserError unless merge is 0 to N // 2.
    """
    sizes: Any = jnp.ones(x.shape[:2], jnp.float32)
    for index in range(size.depth):
        layer = jax.tree.map(lambda leaf: leaf[index], params)  # noqa: B023
        count = min(merge, x.shape[1] // 2) if index else merge
        block = Block(size, run, parent=None)
        x, sizes = block.apply({"params": layer}, x, None, None, None, sizes, count)
    return x, sizes
