"""However it is computed, a run has the same numbers: chunks, placements, devices."""

import json

import jax
import numpy as np
import pytest

from bn_vgg.data import pipeline
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from tests.runs import lines, run, same, state
from tests.xla_flags import QUICK

# Nothing may blow a rounding up in runs that are compared within a tolerance. On plain areas, which
# drawings have, it decides which pixel of each pooling gets the gradient, for a whole area alike;
# noise has none. And the recipe's optimizer divides a weight's gradient by its own size, so that it
# takes a step from what is only the rounding of a gradient near 0; with this epsilon it is gradient
# descent.
# 72 images less 32 held out, in batches of 8: 5 steps an epoch.
ARGUMENTS = (
    "--config=tests/tiny_config.py", "--config.data.valid_examples=21",
    "--config.model.features=(4, 6)",
    "--config.optimizer.epsilon=1", "--config.optimizer.learning_rate=0.001",
    "--config.model.dropout_rate=0.3", "--notensorboard",
)  # fmt: skip


def devices(count):
    return {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={count}"}


def difference(one, other):
    """The largest of any array, by the array's largest value."""
    off = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(a).max(), 1e-6), one, other)
    return float(max(jax.tree.leaves(off)))


def assert_same_run(left, right, num_epochs):
    """Whole runs: order, crops, dropout, statistics and evaluations.

    The state to a hundredth of each array's largest value, which is what a single ReLU may
    make of a rounding next to 0; another order or mask makes far more.
    """
    states = [state(path) for path in (left, right)]
    assert int(states[0].step) == int(states[1].step) == 5 * num_epochs
    assert difference(*states) < 1e-2
    assert len(lines(left)) == len(lines(right)) == num_epochs
    for one, other in zip(lines(left), lines(right), strict=True):
        assert one.keys() == other.keys()
        for name, x in one.items():
            within = {"abs": 1e-6} if "error_rate" in name else {"rel": 2e-3, "abs": 1e-4}
            assert x == pytest.approx(other[name], **within), name


@pytest.mark.slow
def test_lengths_of_chunks_and_placements_change_no_bit(
    tiny_config, cache_folder, tmp_path, monkeypatch
):
    """Eleven steps an epoch: chunks of 1, and of 5 with a rest, cut on the device or host."""
    tiny_config.batch_size, tiny_config.model.norm = 4, "full"
    tiny_config.model.features = (4, 6)
    tiny_config.data.valid_examples, tiny_config.model.dropout_rate = 17, 0.3
    tiny_config.model.stats_pass = "dropout"  # which is one pass fewer to compile
    chosen = [(5, "device"), (1, "host")]
    for length, placement in chosen:
        monkeypatch.setattr(pipeline, "_MAX_STEPS", length)
        tiny_config.data.placement = placement
        run(tiny_config, tmp_path / f"{length}", cache_folder)
    for length, _ in chosen[1:]:
        assert lines(tmp_path / f"{length}") == lines(tmp_path / "5")
        for which in ("best", "latest"):
            same(state(tmp_path / f"{length}", which), state(tmp_path / "5", which))


@pytest.mark.slow
def test_four_devices_equal_one(run_command, noise_folder, tmp_path):
    for count in (1, 4):
        run_command(
            "main", *ARGUMENTS, f"--config.data.source={noise_folder}", "--config.num_epochs=2",
            "--config.model.norm=full", "--config.augment.mixup=0.2",
            "--config.augment.horizontal_flip=True", "--config.optimizer.average_decay=0.9",
            f"--workdir={tmp_path / str(count)}", JAX_DISABLE_MOST_OPTIMIZATIONS="1",
            **devices(count),
        )  # fmt: skip
    result = json.loads((tmp_path / "4" / "result.json").read_text())
    assert result["hardware"]["num_devices"] == 4
    assert_same_run(tmp_path / "1", tmp_path / "4", 2)


def test_shares_of_a_batch():
    four = Devices()
    four.count, four.local = 8, 4  # of two hosts
    four.check(96, "highest")
    with pytest.raises(UserError) as raised:
        four.check(100, "highest")
    assert str(raised.value) == (
        "config.batch_size: 8 devices cannot share 100 examples equally; sizes that fit: 96, 104"
    )
    with pytest.raises(UserError, match=r"sizes that fit: 8$"):
        four.check(5, "highest")
    with pytest.raises(UserError, match="tensorfloat32 is for NVIDIA GPUs, and this is a CPU"):
        four.check(8, "tensorfloat32")
    assert [four.round_up(size) for size in (1, 8, 9)] == [8, 8, 16]
    assert four.host_rows(16) == slice(0, 8)
