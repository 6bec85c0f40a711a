"""The long one: fifty blows to one run."""

import pytest
from chaos import torment


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_blows_change_no_bit(tmp_path):
    seen = torment(tmp_path, moments=50, seed=0)
    assert sum(seen.values()) == 50
