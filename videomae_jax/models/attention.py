"""Softmax attention behind one function.

"xla" is plain matrix products with a float32 softmax; it runs everywhere. "cudnn" is the
fused kernel of NVIDIA GPUs, for bfloat16 and float16 only, and must be asked for by name:
`jax.nn.dot_product_attention` never picks it by itself.
"""

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def choose_implementation(name: str, *, platform: str, dtype: jnp.dtype) -> str:
    """Resolve "auto" for a platform ("cpu", "gpu", "tpu") and a compute dtype."""
    if name not in IMPLEMENTATIONS:
        raise UserError(f"attention {name!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}")
    fused = platform == "gpu" and jnp.dtype(dtype).itemsize == 2
    if name == "cudnn" and not fused:
        raise UserError(
            f"attention 'cudnn' needs a GPU and bfloat16, not {platform} and "
            f"{jnp.dtype(dtype).name}: use 'auto' or 'xla'"
        )
    return ("cudnn" if fused else "xla") if name == "auto" else name


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v; q, k, v and the result are [B, N, heads, d]."""
    scale = q.shape[-1] ** -0.5
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    scores = jnp.einsum("bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)
