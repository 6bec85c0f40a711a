"""The network of a checkpoint runs wherever it is loaded."""

import pytest

from videomae_jax.config import load_recipe
from videomae_jax.inference.network import build_network


@pytest.mark.parametrize(
    "attention, expected", [("cudnn", "chunked"), ("splash", "chunked"), ("xla", "xla")]
)
def test_a_kernel_of_the_training_that_is_not_here_is_replaced(attention, expected):
    config = load_recipe("finetune", "tiny,custom").copy_and_resolve_references()
    config.model.classes = 3
    network = build_network(config, dtype="float32", attention=attention)
    assert network.run.attention == expected
