"""k nearest neighbours: the class of a clip told from clips of known classes, nothing trained.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError

TEMPERATURE = 0.07  # of Wu et al.
CHUNK = 256  # queries compared to the whole bank at once


def neighbour_votes(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    ks: tuple[int, ...],
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """Return for each k the classes' shares of the votes, float32 [q, classes].

    bank, queries: features [n, D] and [q, D]. labels: int32 [n], of the bank. The k most
    similar by cosine vote with exp(similarity / temperature); of equals the earlier one. The
    classes are 0 to the largest label. Raises UserError where the bank has less than k.
    """
    check_neighbours(ks, temperature=temperature, bank=len(bank))
    vote = functools.partial(
        _votes,
        _directions(bank),
        jnp.asarray(labels),
        temperature=temperature,
        ks=tuple(ks),
        classes=int(labels.max()) + 1,
    )
    queries = _directions(queries)
    chunks = [jax.device_get(vote(queries[i : i + CHUNK])) for i in range(0, len(queries), CHUNK)]
    votes = np.concatenate(chunks, axis=1)
    return dict(zip(ks, votes, strict=True))


def check_neighbours(ks: tuple[int, ...], *, temperature: float = TEMPERATURE, bank: int) -> None:
    """Raise UserError unless a bank of so many has k neighbours for every k of `ks`."""
    for k in ks:
        if not 1 <= k <= bank:
            raise UserError(
                f"k {k}: there are {bank} labelled training videos to compare with, use 1 to {bank}"
            )
    if temperature <= 0:
        raise UserError(f"temperature {temperature:g}: use above 0, such as {TEMPERATURE}")


@functools.partial(jax.jit, static_argnames=("ks", "classes"))
def _votes(bank, labels, queries, *, temperature, ks, classes):
    """[len(ks), q, classes] of unit vectors."""
    similarity = jnp.matmul(queries, bank.T, precision="highest")
    nearest, places = jax.lax.top_k(similarity, max(ks))
    weights = jnp.exp((nearest - 1) / temperature)  # of the same ratios, and never too large
    votes = weights[..., None] * jax.nn.one_hot(labels[places], classes)
    votes = jnp.stack([votes[:, :k].sum(axis=1) for k in ks])
    return votes / votes.sum(axis=-1, keepdims=True)


def _directions(features: np.ndarray) -> jax.Array:
    features = jnp.asarray(features, jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True).clip(1e-12)
