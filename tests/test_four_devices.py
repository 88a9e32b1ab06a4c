"""Each normalizer computes on four devices what it computes on one.

Also the script that the test runs where there are four:
XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.test_four_devices full ghost
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np

from bn_vgg.normalization import NORMALIZERS
from bn_vgg.state import init_state
from bn_vgg.steps import make_train_step
from tests.conftest import ROOT
from tests.test_steps import build

KWARGS = {
    "ghost": {"ghost_size": 2},
    "group": {"num_groups": 2},
    "batch_renorm": {"warmup_updates": 0},
}


def test_every_normalizer_computes_the_same_on_four_devices():
    """Parameters and statistics after three steps, to 1e-4 of each array's largest value.

    tests/test_parallel.py does the seed's three by whole runs.
    """
    norms = sorted(set(NORMALIZERS) - {"mean_only", "full", "none"})
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_four_devices", *norms],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout.splitlines()[-1])
    assert set(worst) == set(norms)
    assert max(worst.values()) < 1e-4, worst


def after_three_steps(norm, batch, devices):
    """Returns the state after three updates, NumPy arrays."""
    axis_name = "batch" if devices > 1 else None
    model, optimizer, _ = build(
        norm, norm_kwargs=KWARGS.get(norm, {}), features=(4, 4), axis_name=axis_name
    )
    images = batch["windows_NWHWC"][:, 0] / np.float32(255)
    state = init_state(model, optimizer, jax.random.key(0), images)
    step = make_train_step(model, optimizer, axis_name)
    if devices == 1:
        run = jax.jit(step)
    else:
        state = jax.tree.map(lambda x: np.stack([x] * devices), state)
        batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
        run = jax.pmap(step, axis_name=axis_name, in_axes=(0, 0, None))
    for number in range(3):
        state, _ = run(state, batch, jax.random.key(number))
    return jax.device_get(state if devices == 1 else jax.tree.map(lambda x: x[0], state))


def main():
    rng = np.random.default_rng(0)
    batch = {
        "windows_NWHWC": rng.integers(0, 256, (8, 1, 16, 16, 3), np.uint8),
        "labels_N": rng.integers(0, 2, 8, np.int32),
        "positions_N": np.arange(8, dtype=np.int32),
    }
    assert jax.device_count() == 4
    worst = {}
    for norm in sys.argv[1:]:
        one, four = (after_three_steps(norm, batch, devices) for devices in (1, 4))
        off = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(a).max(), 1e-6), one, four)
        worst[norm] = float(max(jax.tree.leaves((off.params, off.batch_stats))))
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
