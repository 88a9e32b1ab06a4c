"""What tests of runs share: making one, here or by the command, and comparing two."""

import json
import time

import jax
import numpy as np
from absl import logging

from bn_vgg import api, launch
from tests.conftest import start_python

# What differs from run to run: of a line, and of a result.
TIMES = ("train/images_per_second", "seconds")
MEASURED = ("images_per_second", "wall_seconds", "command")


class KilledError(Exception):
    """Raised in a run's loop, so that it ends there."""


def run(config, path, cache_folder, say=logging.info):
    """Does what the command does, without flags and without TensorBoard."""
    return launch.train(config, str(path), cache_folder=cache_folder, say=say, tensorboard=False)


def epochs_of(config, count):
    changed = config.copy_and_resolve_references()
    changed.num_epochs = count
    return changed


def start_run(folder, source, cache_folder, *more, epochs):
    """Starts `python -m bn_vgg.main` for a tiny run in a folder."""
    return start_python(
        "-m", "bn_vgg.main", "--config=tests/tiny_config.py", f"--config.data.source={source}",
        f"--config.num_epochs={epochs}", f"--workdir={folder}", f"--cache_dir={cache_folder}",
        *more,
    )  # fmt: skip


def wait_for_checkpoint(folder, process, epochs=3):
    """Waits until the lines of `epochs` are written: the last but one has its checkpoint."""
    deadline = time.monotonic() + 400
    while num_lines(folder) < epochs:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def num_lines(folder):
    """How many epochs' lines a run has written."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def lines(folder):
    """A run's lines, without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key not in TIMES} for line in found]


def result(folder):
    """A run's result, without what is measured."""
    found = json.loads((folder / "result.json").read_text())
    return {key: x for key, x in found.items() if key not in MEASURED}


def same(left, right):
    """Compares two trees of arrays, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


def difference(one, other):
    """The largest of any array of two trees, by the array's largest value."""
    off = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(a).max(), 1e-6), one, other)
    return float(max(jax.tree.leaves(off)))


def state(folder, which="latest"):
    """The state of a run's checkpoint, NumPy arrays."""
    return api.load(folder, which).state


def assert_equal_runs(left, right):
    """Lines, result and the states of both checkpoints, bit for bit."""
    assert lines(left) == lines(right)
    assert result(left) == result(right)
    for which in ("best", "latest"):
        same(state(left, which), state(right, which))
