"""MoCo v3's heads and loss: vectors computed by hand, symmetries, and one result on any mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.sharding import make_mesh
from videomae_jax.models.contrast import (
    BatchNorm,
    Head,
    contrast_sums,
    feature_spread,
    pair_views,
)
from videomae_jax.tasks.contrast import map_chunks

sums = jax.jit(functools.partial(contrast_sums, temperature=0.2))


def directions(queries, keys):
    """Return the terms of a batch whose two directions are the same."""
    both = [jnp.stack([jnp.asarray(x, jnp.float32)] * 2, axis=1) for x in (queries, keys)]
    return sums(*both)


def random_pair(videos=8, dim=6):
    return jax.random.normal(jax.random.key(0), (2, videos, 2, dim))


def loss(queries, keys):
    return float(sums(queries, keys)["error"].mean())


@pytest.mark.parametrize(
    ("queries", "keys", "rows"),
    [
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], [0.00268612] * 2),
        ([[1, 2]] * 3, [[3, 1]] * 3, [0.4 * math.log(3)] * 3),
        ([[3, 0], [0, 2], [1, 1]], [[1, 1], [0, 1], [-1, 0]], [0.011567, 0.085379, 3.497473]),
    ],
    ids=("identity", "equal keys", "three"),
)
def test_the_loss_of_a_direction_is_the_one_computed_by_hand(queries, keys, rows):
    np.testing.assert_allclose(directions(queries, keys)["error"] / 2, rows, atol=1e-6)


def test_the_metrics_of_a_batch():
    found = directions([[3, 0], [0, 2], [1, 1]], [[1, 1], [0, 1], [-1, 0]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(found["positive"], [half, 1, -half], atol=1e-6)
    np.testing.assert_allclose(found["negative"], [-0.5, half / 2, (1 + half) / 2], atol=1e-6)
    assert found["match"].tolist() == [1, 1, 0] and found["count"].tolist() == [1, 1, 1]


def test_symmetries():
    queries, keys = random_pair()
    order = jnp.asarray([3, 1, 0, 2, 7, 6, 5, 4])
    rows = sums(queries, keys)["error"]
    moved = sums(queries[order], keys[order])["error"]
    np.testing.assert_allclose(moved, rows[order], rtol=1e-5)
    # Equal for both views, and for vectors of any length.
    assert loss(queries[:, ::-1], keys[:, ::-1]) == pytest.approx(loss(queries, keys), rel=1e-5)
    assert loss(7 * queries, 0.1 * keys) == pytest.approx(loss(queries, keys), rel=1e-5)
    # The keys of the query's own view are no candidates.
    assert loss(queries, keys.at[:, 0].set(queries[:, 1])) != pytest.approx(loss(queries, keys))


def test_a_video_that_is_twice_in_a_batch_is_its_own_rival():
    _, keys = random_pair()
    twice = keys.at[1].set(keys[0])
    assert loss(twice, twice) > loss(keys, keys) + 0.05


def test_absent_videos_count_for_nothing():
    queries, keys = random_pair()
    weights = jnp.asarray([1.0, 1, 0, 1, 1, 0, 1, 1])
    there = np.flatnonzero(weights)
    found = sums(queries, keys, weights=weights)
    alone = sums(queries[there], keys[there])
    for name in alone:
        np.testing.assert_allclose(found[name][there], alone[name], rtol=1e-5, atol=1e-6)
    norm = BatchNorm(affine=False)
    np.testing.assert_allclose(
        norm.apply({}, keys, weights)[there], norm.apply({}, keys[there], None), atol=1e-5
    )


def test_each_view_has_statistics_of_its_own():
    x = jnp.asarray([0.0, 100.0])[:, None] + random_pair()[0]
    y = BatchNorm(affine=False).apply({}, x, None)
    np.testing.assert_allclose(y.mean(0), np.zeros([2, 6]), atol=1e-5)
    np.testing.assert_allclose(y.std(0), np.ones([2, 6]), atol=1e-3)  # of N, not N - 1


def test_the_spread_shows_a_collapse():
    assert feature_spread(jnp.ones([8, 2, 6])) < 1e-6
    assert feature_spread(1 + 0.01 * random_pair()[0]) < 0.02
    assert feature_spread(jnp.concatenate([random_pair()[0], -random_pair()[0]])) == pytest.approx(
        1, abs=1e-4
    )


def test_random_heads_start_a_little_above_the_loss_of_knowing_nothing():
    x = jax.random.normal(jax.random.key(1), (64, 2, 32))
    projector, predictor = Head((64, 64, 64)), Head((64, 64))
    keys, params = projector.init_with_output(jax.random.key(2), x, None)
    assert set(params["params"]["norm1"]) == {"scale", "bias"}
    assert set(params["params"]) == {"fc1", "fc2", "fc3", "norm1", "norm2"}
    queries, _ = predictor.init_with_output(jax.random.key(3), keys, None)
    assert 0 < loss(queries, keys) - 0.8 * math.log(64) < 0.2


@pytest.mark.slow
def test_float64_one_device_is_eight_and_local_statistics_are_another_method():
    with jax.enable_x64(True):
        projector, predictor = Head((16, 16, 8)), Head((16, 8))
        keys = jax.random.split(jax.random.key(0), 5)
        x = jax.random.normal(keys[0], (128, 12), jnp.float64)
        features = jnp.zeros([64, 2, 10])
        params = {
            "encoder": jax.random.normal(keys[1], (12, 10)),
            "projector": projector.init(keys[2], features, None)["params"],
            "predictor": predictor.init(keys[3], jnp.zeros([64, 2, 8]), None)["params"],
        }
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        average = jax.tree.map(lambda p: p + 0.1, params)

        def mean_loss(params, x, chunks):
            @jax.checkpoint
            def encode(weights, x):
                return jnp.tanh(x @ weights["encoder"])

            queries, targets = (
                projector.apply(
                    {"params": w["projector"]},
                    pair_views(map_chunks(functools.partial(encode, w), x, chunks=chunks)),
                    None,
                )
                for w in (params, average)
            )
            queries = predictor.apply({"params": params["predictor"]}, queries, None)
            return sums(queries, targets)["error"].mean()

        step = jax.jit(jax.value_and_grad(mean_loss), static_argnums=2)
        one, grads = step(params, x, 1)
        assert one.dtype == jnp.float64
        mesh = make_mesh(dict(data=4, fsdp=2, tensor=1))
        with jax.set_mesh(mesh):
            split = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
            eight, others = step(params, split, 4)
            local = jax.jit(
                jax.shard_map(
                    lambda x: jax.lax.pmean(mean_loss(params, x, 1), ("data", "fsdp")),
                    in_specs=P(("data", "fsdp")),
                    out_specs=P(),
                    check_vma=False,
                )
            )(split)
        np.testing.assert_allclose(eight, one, rtol=1e-13)
        for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)
        # A device that has only its own eight videos guesses among eight.
        assert float(local) < float(one) - 1
