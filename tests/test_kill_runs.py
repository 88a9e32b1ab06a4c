"""A run that was killed, wherever and however often, ends like one that was not."""

import os
import random

import pytest

from tests.kill_runs import kill_runs


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    seed = int(os.environ.get("BN_VGG_KILL_SEED", random.randrange(10**6)))
    print(f"BN_VGG_KILL_SEED={seed}")
    runs, _ = kill_runs(tmp_path, 5, seed)
    assert runs >= 1
