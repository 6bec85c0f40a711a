"""What a step on CPUs frees is there for the next one, without the system clearing pages anew."""

import ctypes
import os
import subprocess
import sys

import pytest

# Prints the pages the system had to provide for the third call of a function with 80 MB of
# temporaries, as the second one had left things.
SCRIPT = """
import resource
import jax, jax.numpy as jnp
from videomae_jax.devices.host_memory import disable_async_dispatch, trim_host_memory

disable_async_dispatch()

def function(x):
    parts = jax.lax.optimization_barrier([jnp.sin(x * i) for i in range(1, 6)])
    return sum(part.sum() for part in parts)

x = jnp.ones([2048, 2048])
compiled = jax.jit(function).lower(x).compile()
assert compiled.memory_analysis().temp_size_in_bytes > 80e6
if {settle}:
    trim_host_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(compiled(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, settle):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT.format(settle=settle)]
    return int(subprocess.run(command, env=env, check=True, capture_output=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_temporaries_are_found_again():
    with_pages, without = faults(settle=False), faults(settle=True)
    print(f"\n{with_pages} page faults a call, {without} settled")
    assert without < 1000 < 10_000 < with_pages
