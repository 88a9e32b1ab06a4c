"""A run that was killed, wherever and however often, ends like one that was not."""

import os
import random

import pytest

from tests.kill_runs import LASTS, assert_equal_to_undisturbed, kill_runs

KILLS = 54


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    seed = int(os.environ.get("BN_VGG_KILL_SEED", random.randrange(10**6)))
    print(f"BN_VGG_KILL_SEED={seed}")
    targets, landed = kill_runs(tmp_path, KILLS, seed)
    print(dict(landed))
    assert sum(landed.values()) - landed["too late"] >= 50
    assert set(LASTS) <= set(landed)
    assert_equal_to_undisturbed(targets)
