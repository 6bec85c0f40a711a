"""The long one: fifty blows, five to each of ten runs."""

import pytest
from chaos import torment


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_blows_change_no_bit(tmp_path):
    seen = [torment(tmp_path, moments=5, seed=seed) for seed in range(10)]
    assert sum(count.total() for count in seen) == 50
