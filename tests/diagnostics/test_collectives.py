"""Reading the communication of a step from HLO text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.devices.sharding import make_mesh
from videomae_jax.diagnostics import collectives


def test_a_loop_counts_once_per_turn():
    mesh = make_mesh(dict(data=8, fsdp=1, tensor=1))
    split = NamedSharding(mesh, P(None, "data"))

    def sums(matrix, turns):
        def turn(total, _):
            return jnp.tanh(matrix @ jnp.sin(matrix.T @ total)), None

        return jax.lax.scan(turn, jnp.ones(16), length=turns)[0]

    def sent(turns):
        shape = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=split)
        text = jax.jit(sums, static_argnums=1).lower(shape, turns).compile().as_text()
        return {r.kind: r for r in collectives.read_collectives(text, hosts=[0] * 8)}

    three, twelve = sent(3)["all-reduce"], sent(12)["all-reduce"]
    assert twelve.calls == 4 * three.calls and twelve.bytes == 4 * three.bytes
    assert three.bytes == three.calls * 2 * 7 / 8 * 16 * 4


GROUPS = (
    "replica_groups={{0,2},{1,3}}",
    "replica_groups=[2,2]<=[2,2]T(1,0)",
    "replica_groups=mesh['a'=2,'b'=2] {'a'}",
    "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
    "replica_groups=mesh['a'=4] {'a':(1)2}",
)


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_are_read_as_xla_writes_them(groups):
    text = f"""HloModule step

%body (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {{
  %all-gather.1 = f32[4,2]{{1,0:T(8,128)}} all-gather(%x), channel_id=1, {groups}, dimensions={{0}}
}}

%started (p: f32[2,2]) -> f32[4,2] {{
  %all-gather.2 = f32[4,2]{{1,0:T(8,128)}} all-gather(%x), channel_id=1, {groups}, dimensions={{0}}
}}

%condition (p: (s32[], f32[4,2])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(6)
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %bound), direction=LT
}}

ENTRY %main (a: f32[4,2]) -> f32[4,2] {{
  %first = f32[4,2]{{1,0}} fusion(%a), kind=kCustom, calls=%started
  %while.1 = (s32[], f32[4,2]) while(%tuple.1), condition=%condition, body=%body
}}
"""
    # As XLA for TPU writes a loop. One channel is one collective, wherever its parts stand.
    (row,) = collectives.read_collectives(text, hosts=[0, 0, 1, 1])
    assert row == ("all-gather", True, 6, 6 * 16.0)
    (row,) = collectives.read_collectives(text, hosts=[0, 1, 0, 1])
    assert not row.remote


def test_all_sums_of_one_channel_count():
    # As XLA for TPU writes what psum sends, from a compile for v5e-64.
    text = """HloModule step

ENTRY %main (a: f32[4,2]) -> f32[4,2] {
  %psum.1 = f32[4,2]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1}}
  %psum.2 = f32[4,2]{1,0} all-reduce(%b), channel_id=1, replica_groups={{0,1}}
}
"""
    (row,) = collectives.read_collectives(text, hosts=[0, 0])
    assert row == ("all-reduce", False, 2, 2 * 32.0)


def test_what_slices_exchange_is_counted():
    # As XLA for TPU writes it, from a compile for v5e-16x2.
    text = """HloModule step

ENTRY %main (a: f32[2,8,128]) -> f32[2,8,128] {
  %send = (f32[2,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%a, %after-all), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""
    (row,) = collectives.read_collectives(text, hosts=[0, 0, 1, 1])
    assert row == ("all-reduce", True, 1, 2 * 8 * 128 * 4)
