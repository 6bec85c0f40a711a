"""Meshes, the sharding table, and what a sharded step sends between devices."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import count_norms_taken_in, tiny

from videomae_jax.config import load_config
from videomae_jax.devices.sharding import (
    batch_sharding,
    batch_share,
    make_mesh,
    split_slices,
    state_sharding,
)
from videomae_jax.diagnostics.collectives import read_collectives
from videomae_jax.errors import UserError
from videomae_jax.tasks import pretrain
from videomae_jax.training.optim import base_optimizer
from videomae_jax.training.step import TrainState, jit_steps, make_state


def compiled_text(mesh, *more):
    config = tiny(*more)
    mesh, parts = make_mesh(mesh), config.accumulation
    with jax.set_mesh(mesh):
        functions = jit_steps(
            pretrain.build_task(config),
            base_optimizer(config),
            lambda _: 1e-3,
            mesh,
            seed=0,
            accumulation=parts,
        )
        sharding, clips = batch_sharding(mesh), 8 * parts
        batch = {
            "video": jax.ShapeDtypeStruct((clips, 4, 48, 40, 3), jnp.uint8, sharding=sharding),
            "id": jax.ShapeDtypeStruct((clips,), jnp.int32, sharding=sharding),
            "size": jax.ShapeDtypeStruct((clips, 2), jnp.int32, sharding=sharding),
        }
        return functions.train.lower(functions.abstract_state, batch).compile().as_text()


def collectives(text):
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return {match.group(1) for match in re.finditer(rf" ({kinds})(-start)?\(", text)}


@pytest.mark.slow
def test_data_parallel_reduces_gradients_and_moves_nothing_else():
    assert collectives(compiled_text(dict(data=8, fsdp=1, tensor=1))) == {"all-reduce"}


@pytest.mark.slow
def test_accumulated_gradients_meet_once_a_step():
    def sent(*more):
        text = compiled_text(dict(data=8, fsdp=1, tensor=1), *more)
        return read_collectives(text, hosts=[0] * 8)

    (whole,), (parts,) = sent(), sent("--config.accumulation=2")
    assert parts.kind == whole.kind == "all-reduce"
    # Of parts all gradients are sent, of a whole batch those of weights make those of norms.
    norms = 2 * 7 / 8 * 4 * count_norms_taken_in(tiny())
    assert parts.bytes == pytest.approx(whole.bytes + norms, rel=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--config.run.scan=True",), marks=pytest.mark.slow),
        pytest.param(("--config.model.decoder_attention=cross",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_fsdp_gathers_parameters_and_reduces_gradients(more):
    # XLA for CPU keeps a part of an all-reduce where that for TPU has reduce-scatter: test_plan.
    kinds = collectives(compiled_text(dict(data=1, fsdp=8, tensor=1), *more))
    assert kinds == {"all-gather", "all-reduce"}


def test_only_data_crosses_from_slice_to_slice():
    mesh = make_mesh(dict(slices=2, data=4, fsdp=2, tensor=1))
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)
    assert numbers.shape == (4, 2, 1)
    assert set(numbers[:2].flat) == {0, 1, 2, 3} and set(numbers[2:].flat) == {4, 5, 6, 7}


def test_slices_are_what_the_devices_of_a_pod_say():
    class Chip(NamedTuple):
        id: int
        slice_index: int
        platform: str = "tpu"

    chips = [Chip(number, number % 2) for number in range(8)]
    assert [[chip.id for chip in part] for part in split_slices(chips)] == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
    ]
    assert split_slices(chips, count=2) == split_slices(chips)
    assert split_slices(chips, count=1) == [chips]
    with pytest.raises(UserError, match="mesh.slices=4 of 8 devices: use 2 or -1"):
        split_slices(chips, count=4)
    gpus = [Chip(number, number % 2, "gpu") for number in range(8)]
    assert split_slices(gpus) == [gpus]


def test_one_process_reads_the_whole_batch():
    assert batch_share(make_mesh(dict(data=2, fsdp=2, tensor=2))) == (0, 1)


def test_every_leaf_of_every_size_has_one_row_in_the_sharding_table():
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    for size in ("s", "b", "l", "h", "g", "b,k400,cross"):
        config = load_config(f"pretrain:{size}" + ",k400" * (len(size) == 1))
        task = pretrain.build_task(config)
        state = jax.eval_shape(lambda: make_state(task, base_optimizer(config), seed=0))  # noqa: B023
        if size == "s":
            with pytest.raises(
                UserError, match=r"3 does not divide by mesh.tensor=2: use tensor=1"
            ):
                state_sharding(state, mesh)
        else:
            shardings = state_sharding(state, mesh)
            assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(state))


def test_an_unknown_leaf_is_not_sharded_by_accident():
    leaf = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(ValueError, match="params/surprise .* matches 0 rows"):
        state_sharding(
            TrainState(step=leaf, params={"surprise": leaf}, opt_state=(), skipped=leaf),
            make_mesh(dict(data=8, fsdp=1, tensor=1)),
        )


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (dict(data=3, fsdp=1, tensor=1), "needs 3 devices, there are 8"),
        (dict(data=-1, fsdp=3, tensor=1), "needs a multiple of 3 devices, there are 8"),
        (dict(data=-1, fsdp=-1, tensor=1), "at most one is -1"),
        (dict(data=0, fsdp=1, tensor=1), "at least 1"),
        (dict(slices=3, data=-1, fsdp=1, tensor=1), "mesh.slices=3 of 8 devices: use 1 or -1"),
        (dict(slices=2, data=1, fsdp=8, tensor=1), "mesh.data=1 does not divide by 2 slices"),
    ],
)
def test_impossible_meshes_are_refused(axes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(axes)
