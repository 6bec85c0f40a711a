"""Token merging, against a slow reference in NumPy, and where nothing may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from videomae_jax.errors import UserError
from videomae_jax.models import attention
from videomae_jax.models.classifier import VideoClassifier, init_classifier
from videomae_jax.models.tokens import sincos_positions
from videomae_jax.models.vit import Execution, Size, merge_blocks

SIZE = Size(width=24, depth=3, heads=3, mlp_width=40)
ONE = Size(width=24, depth=1, heads=3, mlp_width=40)
GRID = (2, 4, 4)


def network(**fields):
    shape = dict(encoder=SIZE, patch=(2, 4, 4), mean=(0.5,) * 3, std=(0.25,) * 3, classes=5)
    return VideoClassifier(**shape, **fields)


@pytest.fixture(scope="module")
def params():
    """Large weights, so that the tokens of a clip differ."""
    leaves, tree = jax.tree.flatten(
        jax.jit(lambda key: init_classifier(network(), key, GRID))(jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    moved = [leaf + 0.3 * rng.standard_normal(leaf.shape).astype("f") for leaf in leaves]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(1).integers(0, 256, (2, 32, 96), np.uint8)


def slow_merge(x, keys, sizes, count):
    """Merge the tokens [N, D] of one clip, with lists and loops."""
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    even, odd = range(0, len(x), 2), range(1, len(x), 2)
    best = {i: max(odd, key=lambda j: unit[i] @ unit[j]) for i in even}
    ranked = sorted(even, key=lambda i: -(unit[i] @ unit[best[i]]))
    groups = {j: [j] for j in odd}
    for i in ranked[:count]:
        groups[best[i]].append(i)
    members = [[i] for i in sorted(ranked[count:])] + list(groups.values())
    means = [sizes[m] @ x[m] / sizes[m].sum() for m in members]
    return np.stack(means), np.array([sizes[m].sum() for m in members])


def slow_logits(params, patches, merge):
    """Return the logits of one clip, float64."""

    def norm(x, w):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]

    def dense(x, w):
        return x @ w["kernel"] + w["bias"]

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = dense((patches / 255 - 0.5) / 0.25, p["encoder"]["embed"])
    x += sincos_positions(*x.shape)
    sizes = np.ones(len(x))
    for index in range(SIZE.depth):
        block = jax.tree.map(lambda leaf: leaf[index], p["encoder"]["blocks"])  # noqa: B023
        attn = block["attn"]
        q, k, v = np.einsum("nd,dchk->cnhk", norm(x, block["norm1"]), attn["qkv"])
        q, v = q + attn["q_bias"], v + attn["v_bias"]
        # A key counts as often as there are tokens in it.
        weights = np.exp(np.einsum("nhk,mhk->hnm", q, k) / np.sqrt(q.shape[-1])) * sizes
        mixed = np.einsum("hnm,mhk->nhk", weights / weights.sum(-1, keepdims=True), v)
        x = x + dense(mixed.reshape(x.shape), attn["proj"])
        x, sizes = slow_merge(x, k.mean(1), sizes, min(merge, len(x) // 2))
        hidden = dense(norm(x, block["norm2"]), block["mlp"]["fc1"])
        x = x + dense(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, block["mlp"]["fc2"])
    return dense(norm(sizes @ x / sizes.sum(), p["fc_norm"]), p["head"])


@pytest.mark.parametrize(
    ("merge", "implementation"), [(0, "xla"), (5, "xla"), (12, "xla"), (12, "chunked")]
)
def test_logits_are_those_of_the_slow_reference(
    params, patches, merge, implementation, monkeypatch
):
    for limit in ("BATCHED", "CHUNK"):
        monkeypatch.setattr(attention, limit, 8)
    model = network(merge_tokens=merge, run=Execution(attention=implementation))
    found = jax.jit(lambda params: model.apply({"params": params}, patches, GRID))(params)
    expected = [slow_logits(params, clip, merge) for clip in patches]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_each_block_merges_as_many_or_half(params, patches):
    model = network(merge_tokens=12)
    tokens = jax.eval_shape(lambda: model.apply({"params": params}, patches, GRID, method="tokens"))
    assert tokens.shape == (2, 32 - 12 - 10 - 5, 24)
    with pytest.raises(UserError, match="17 of 32 tokens cannot be merged in a block: use 0 to 16"):
        network(merge_tokens=17).apply({"params": params}, patches, GRID)


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_equal_tokens_merge_without_changing_the_output(params, implementation, monkeypatch):
    for limit in ("BATCHED", "CHUNK"):
        monkeypatch.setattr(attention, limit, 8)
    run = Execution(attention=implementation)
    tokens = jax.random.normal(jax.random.key(2), (2, 16, 24))
    blocks = jax.tree.map(lambda leaf: leaf[:1], params["encoder"]["blocks"])
    twice = jnp.repeat(tokens, 2, axis=1)
    apply = jax.jit(
        lambda x, merge: merge_blocks(x, blocks, ONE, run, merge=merge), static_argnums=1
    )
    merged, sizes = apply(twice, 16)
    assert (sizes == 2).all()
    plain, _ = apply(tokens, 0)
    plain = plain[:, np.argsort(np.r_[0:16:2, 1:16:2])]  # tokens at even places come first
    np.testing.assert_allclose(merged, plain, atol=1e-5)
    # Half of the pairs merged: the others are two tokens still, and the mean is the same.
    some, sizes = apply(twice, 8)
    assert sorted(set(sizes.ravel().tolist())) == [1, 2]
    np.testing.assert_allclose((some * sizes[..., None]).sum(1) / 32, plain.mean(1), atol=1e-5)
