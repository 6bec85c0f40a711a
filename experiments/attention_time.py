"""Time attention on this machine's CPU, in JAX or in PyTorch: forward, and with the gradient.

python experiments/attention_time.py jax
PYTHON experiments/attention_time.py torch    # PYTHON has torch
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

SHAPES = ((2, 1568, 6, 64), (16, 288, 4, 32), (16, 196, 4, 32))  # clips, tokens, heads, width
REPEATS = 25


def median_ms(step: Callable[[], object]) -> float:
    """Return the median time of a step in ms, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[1:])


def time_jax(q: np.ndarray) -> tuple[float, float]:
    """Return ms of the forward pass, and of both passes, of "auto" attention."""
    import jax

    from videomae_jax.models.attention import attend, choose_implementation

    name = choose_implementation("auto", platform="cpu", dtype=q.dtype)

    def attention(q, k, v):
        return attend(q, k, v, implementation=name)

    forward = jax.jit(attention)
    both = jax.jit(jax.grad(lambda *qkv: attention(*qkv).sum(), argnums=(0, 1, 2)))
    args = [jax.device_put(q)] * 3
    return (
        median_ms(lambda: jax.block_until_ready(forward(*args))),
        median_ms(lambda: jax.block_until_ready(both(*args))),
    )


def time_torch(q: np.ndarray) -> tuple[float, float]:
    """Return ms of the forward pass, and of both passes, of scaled_dot_product_attention."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention
    args = [torch.tensor(q).transpose(1, 2).requires_grad_() for _ in range(3)]

    def forward() -> None:
        with torch.inference_mode():
            attention(*args)

    return median_ms(forward), median_ms(
        lambda: torch.autograd.grad(attention(*args).sum(), inputs=args)
    )


def main() -> None:
    """Print the times of all shapes."""
    libraries = {"jax": time_jax, "torch": time_torch}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library", choices=libraries)
    times = libraries[parser.parse_args().library]
    for shape in SHAPES:
        q = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        print(shape, "forward {:.1f} ms, with the gradient {:.1f} ms".format(*times(q)))


if __name__ == "__main__":
    main()
