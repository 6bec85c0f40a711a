"""Names of topologies."""

import numpy as np
import pytest

from videomae_jax.diagnostics.topology import TPUS, find_devices, parse_topology
from videomae_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("v5e-64", ("v5e", 64, 1)),
        ("v5p-128x2", ("v5p", 128, 2)),
        ("tpu7x-8", ("tpu7x", 8, 1)),
        ("h100-8x2", ("h100", 8, 2)),
    ],
)
def test_names_of_topologies(name, parsed):
    assert parse_topology(name) == parsed


def test_the_shape_of_a_slice_has_as_many_chips_as_its_name_says():
    for _, shapes in TPUS.values():
        for chips, shape in shapes.items():
            assert np.prod([int(side) for side in shape.split("x")]) == chips


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e-65", "use v5e-64 or v5e-128"),
        ("v5p-127", "no slice of 127 TensorCores of v5p: use v5p-64 or v5p-128"),
        ("h100-16", "use up to 8, as in h100-8x2"),
        ("v5e", "'v5e' is unknown: use here or NAME-COUNT"),
        ("b200-8", "'b200-8' is unknown"),
    ],
)
def test_topologies_that_are_none(name, words):
    with pytest.raises(UserError, match=words):
        find_devices(name)
