"""Every attention against float64, forward and backward, and which one is chosen where."""

import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import relative_error
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.sharding import AXES, BATCH_SPEC
from videomae_jax.errors import UserError
from videomae_jax.models import attention
from videomae_jax.models.attention import BATCHED, CHUNK, attend, choose_implementation

SLOW = pytest.mark.slow


def reference(q, k, v, grad):
    """Output and gradients of one clip in float64, written out."""
    scale = q.shape[-1] ** -0.5
    q, k, v, grad = (np.float64(x).transpose(0, 2, 1, 3) for x in (q, k, v, grad))
    scores = scale * q @ k.swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = grad @ v.swapaxes(-1, -2)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    results = (
        weights @ v,
        scale * dscores @ k,
        scale * dscores.swapaxes(-1, -2) @ q,
        weights.swapaxes(-1, -2) @ grad,
    )
    return [x.transpose(0, 2, 1, 3) for x in results]


def draw(*shape, spread=1.0):
    q, k, v, grad = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    return spread * q, spread * k, v, grad


def draw_unequal(queries, keys, heads, width):
    (q, _, _, grad), (_, k, v, _) = (draw(1, n, heads, width) for n in (queries, keys))
    return q, k, v, grad


def gradients(function, q, k, v, grad):
    out, pull = jax.vjp(function, q, k, v)
    return out, *pull(grad)


def check(function, *arrays, bound=2e-6):
    errors = [
        relative_error(got, wanted)
        for got, wanted in zip(
            jax.jit(lambda *a: gradients(function, *a))(*arrays), reference(*arrays), strict=True
        )
    ]
    print(f"\noutput, dq, dk, dv: {', '.join(f'{error:.1e}' for error in errors)}")
    assert max(errors) < bound


@pytest.mark.parametrize(
    ("implementation", "count", "width"),
    [
        # "chunked" is one batch for few tokens. Of its blocks, 1,568 tokens make four equal ones.
        *(("xla", 7, 80), ("xla", 160, 64), ("chunked", 160, 64)),
        *(("chunked", CHUNK + 1, 80), ("chunked", 1568, 64)),
        *(
            pytest.param(name, count, width, marks=SLOW)
            for name in ("xla", "chunked")
            for count in (2, 7, 160, CHUNK + 1, 1568, 3136)
            for width in (64, 80)
        ),
    ],
)
def test_output_and_gradients_are_those_of_float64(implementation, count, width):
    def function(q, k, v):
        return attend(q, k, v, implementation=implementation)

    # Products in jax 0.12 are off by up to 2.1e-6.
    check(function, *draw(1, count, 2, width), bound=3e-6)


# The last block of a decoder answers for the masked tokens alone; in one with cross-attention many
# ask and few are asked.
LENGTHS = [(CHUNK + 1, 2 * CHUNK), (2 * CHUNK, 160)]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_another_number_of_queries_than_keys(implementation, queries, keys):
    arrays = draw_unequal(queries, keys, 2, 16)
    check(lambda *qkv: attend(*qkv, implementation=implementation), *arrays)


def test_large_scores_do_not_overflow():
    arrays = draw(1, CHUNK + 1, 1, 64, spread=12.0)  # scores to several hundreds
    check(lambda *qkv: attend(*qkv, implementation="chunked"), *arrays, bound=1e-4)


@pytest.mark.parametrize("count", [BATCHED, BATCHED + 1])
def test_a_clip_has_the_same_bits_in_any_batch(count):
    """As `inference.engine.predict_windows` says."""
    q, k, v = draw(16, count, 4, 8)[:3]
    compute = jax.jit(functools.partial(attend, implementation="chunked"))
    several, few = compute(q, k, v), compute(q[:2], k[:2], v[:2])
    np.testing.assert_array_equal(several[:2], few)


def test_chunked_computes_bfloat16_in_float32():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(1, CHUNK + 1, 1, 64)]
    check(lambda *qkv: attend(*qkv, implementation="chunked"), *arrays, bound=4e-3)


def test_chunked_never_holds_all_scores():
    count = 2 * CHUNK
    arrays = draw(1, count, 1, 64)

    def shapes(implementation):
        def function(*a):
            return gradients(lambda *qkv: attend(*qkv, implementation=implementation), *a)

        return jax.jit(function).lower(*arrays).compile().as_text()

    assert f"{count},{count}]" in shapes("xla")
    assert f"{count},{count}]" not in shapes("chunked")


def test_the_axes_are_those_of_the_mesh():
    assert (*attention.CLIP_AXES, *attention.HEAD_AXES) == AXES
    assert P(attention.CLIP_AXES) == BATCH_SPEC


def test_clips_and_heads_stay_on_their_devices():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    arrays = draw(4, CHUNK + 1, 2, 16)
    split = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh):
        step = (
            jax.jit(
                lambda *a: gradients(lambda *qkv: attend(*qkv, implementation="chunked"), *a),
                in_shardings=split,
                out_shardings=split,
            )
            .lower(*arrays)
            .compile()
        )
        results = step(*(jax.device_put(x, split) for x in arrays))
    assert not any(move in step.as_text() for move in ("all-gather", "all-to-all", "all-reduce"))
    for got, wanted in zip(results, reference(*arrays), strict=True):
        assert relative_error(got, wanted) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize(("count", "width"), [(7, 64), (160, 64), (200, 80), (1568, 64)])
def test_the_kernel_of_tpus_in_interpret_mode(count, width):
    def function(q, k, v):
        return attention._attend_splash(q, k, v, interpret=True)

    check(function, *draw(1, count, 1, width), bound=5e-6)


@pytest.mark.slow
# 128 keys are a whole block: the queries' padding then has nothing at all to attend to.
@pytest.mark.parametrize(("queries", "keys"), [(200, 160), (130, 128), (1408, 160)])
def test_the_kernel_of_tpus_with_other_queries_than_keys(queries, keys):
    def function(q, k, v):
        return attention._attend_splash(q, k, v, interpret=True)

    check(function, *draw_unequal(queries, keys, 1, 64), bound=5e-6)


# Tokens that a step has, queries and keys, heads and their width: visible, all of 16 frames and of
# 32, the last block's, and those of a decoder with cross-attention.
SHAPES = (
    *((160, 160, 12, 64), (1568, 1568, 6, 64), (3136, 3136, 6, 64)),
    *((160, 160, 16, 80), (1568, 1568, 8, 80), (3136, 3136, 16, 80)),
    *((1408, 1568, 6, 64), (1408, 160, 6, 64)),
)
COMPILE = f"""
SHAPES = {SHAPES}
import sys
import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from videomae_jax.config import load_config
from videomae_jax.models.attention import attend
from videomae_jax.tasks.build import make_execution

devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
axes = (jax.sharding.AxisType.Auto,) * 3
mesh = jax.make_mesh((len(devices), 1, 1), ("data", "fsdp", "tensor"), axes, devices=devices)

with jax.set_mesh(mesh):
    run = make_execution(load_config("pretrain"))

def step(q, k, v, grad):
    out, pull = jax.vjp(lambda *qkv: attend(*qkv, implementation=run.attention), q, k, v)
    return out, pull(grad)

for queries, count, heads, width in SHAPES:
    q, k = (
        jax.ShapeDtypeStruct(
            (len(devices), n, heads, width), run.dtype, sharding=NamedSharding(mesh, P("data"))
        )
        for n in (queries, count)
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(step).trace(q, k, k, q).lower(lowering_platforms=("tpu",))
    text = lowered.compile().as_text()
    kernels = text.count('custom_call_target="tpu_custom_call"')
    print(queries, count, width, kernels, "all-gather" in text)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason='needs libtpu: pip install "jax[tpu]"'
)
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_the_kernel_of_tpus_compiles_ahead_of_time(topology):
    """Two kernels, forward and backward, and no clip leaves its chip."""
    flags = dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, topology],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{queries} {count} {width} 2 False" for queries, count, _, width in SHAPES
    ]


def test_each_machine_gets_its_own():
    assert choose_implementation("auto", platform="cpu", dtype=jnp.float32) == "chunked"
    assert choose_implementation("auto", platform="cpu", dtype=jnp.bfloat16) == "xla"
    assert choose_implementation("auto", platform="gpu", dtype=jnp.bfloat16) == "cudnn"
    assert choose_implementation("auto", platform="gpu", dtype=jnp.float32) == "xla"
    assert choose_implementation("auto", platform="tpu", dtype=jnp.bfloat16) == "splash"
    with pytest.raises(UserError, match="needs a GPU and bfloat16, not cpu and float32"):
        choose_implementation("cudnn", platform="cpu", dtype=jnp.float32)
    with pytest.raises(UserError, match="needs a TPU, not gpu"):
        choose_implementation("splash", platform="gpu", dtype=jnp.bfloat16)


def test_a_kernel_that_fails_is_replaced_and_said(caplog):
    # There is no cuDNN on this machine: the try must fail, and must not end the run.
    assert attention._test_kernel("cudnn", jnp.dtype("bfloat16")) == "xla"
    assert "attention 'cudnn' does not work here" in caplog.text
    assert attention._test_kernel("xla", jnp.dtype("bfloat16")) == "xla"
