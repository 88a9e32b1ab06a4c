"""Each normalizer computes on four devices what it computes on one.

Also the script that the test runs where there are four:
XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.test_four_devices full ghost
"""

import json
import os
import statistics
import subprocess
import sys

import jax
import numpy as np
import pytest

from bn_vgg.models.norms import NORMALIZERS
from bn_vgg.optimizer import rmsprop
from bn_vgg.steps import make_train_step
from tests.conftest import ROOT
from tests.test_steps import build

KWARGS = {
    "ghost": {"ghost_size": 2},
    "group": {"num_groups": 2},
    "batch_renorm": {"warmup_updates": 0},
}

# A value next to 0 may be cut off by a ReLU on one device and not on four: rounding decides, and a
# gradient is another. That happens with one batch of some thirty; a mistake is in all of them.
NUM_BATCHES = 5


@pytest.mark.slow
def test_every_normalizer_computes_the_same_on_four_devices():
    """Parameters, statistics and mean squares after three steps, with dropout.

    To 2e-5 of each array's largest value, for most of the batches.
    """
    # Twenty-two programs for a few steps each: to compile them takes longer than to run them.
    settings = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_four_devices", *NORMALIZERS],
        cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert set(differences) == set(NORMALIZERS)
    middle = {norm: statistics.median(each) for norm, each in differences.items()}
    assert max(middle.values()) < 2e-5, differences


def after_three_steps(norm, batches, devices):
    """Yields, for each batch, the state after three updates on it, NumPy arrays."""
    axis_name = "batch" if devices > 1 else None
    model, _, start = build(
        norm, norm_kwargs=KWARGS.get(norm, {}), features=(4, 4), axis_name=axis_name,
        dropout_rate=0.3,
    )  # fmt: skip
    # Gradient descent: see tests/test_parallel.py.
    optimizer = rmsprop(learning_rate=0.001, decay=0.9, epsilon=1, bias_correction=False)
    step = make_train_step(model, optimizer, axis_name)
    if devices == 1:
        run = jax.jit(step)
    else:
        run = jax.pmap(step, axis_name=axis_name, in_axes=(0, 0, None))
        start = jax.tree.map(lambda x: np.stack([x] * devices), start)
    for batch in batches:
        state = start
        if devices > 1:
            batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
        for number in range(3):
            state, _ = run(state, batch, jax.random.key(number))
        yield jax.device_get(state if devices == 1 else jax.tree.map(lambda x: x[0], state))


def difference(one, other):
    """The largest of any array, by the array's largest value."""
    off = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(a).max(), 1e-6), one, other)
    return float(max(jax.tree.leaves(off)))


def main():
    assert jax.device_count() == 4
    rng = np.random.default_rng(0)
    batches = [
        {
            "windows_NWHWC": rng.integers(0, 256, (8, 1, 16, 16, 3), np.uint8),
            "labels_N": rng.integers(0, 2, 8, np.int32),
            "positions_N": np.arange(8, dtype=np.int32),
        }
        for _ in range(NUM_BATCHES)
    ]
    found = {}
    for norm in sys.argv[1:]:
        pairs = zip(*(after_three_steps(norm, batches, count) for count in (1, 4)), strict=True)
        found[norm] = [difference(*pair) for pair in pairs]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
