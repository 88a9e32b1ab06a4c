"""What tests of runs share: making one, here or by the command, and comparing two."""

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np

from bn_vgg import train as loop
from bn_vgg.data.prepared import prepare
from bn_vgg.hooks import Hooks
from bn_vgg.run_dir import Workdir
from bn_vgg.trained import load
from tests.conftest import ROOT

# What differs from run to run: of a line, and of a result.
TIMES = ("train/images_per_second", "seconds")
MEASURED = ("images_per_second", "wall_seconds", "command")


class KilledError(Exception):
    """Raised by an action, so that a run ends there."""


def run(config, cache, path, session=None, **hooks):
    """What the command does, without flags."""
    data = prepare(cache, config)
    workdir = Workdir(str(path))
    workdir.claim(config.to_dict(), data.about)
    finished = loop.finished_result(config, workdir)
    if finished:
        return finished
    return loop.train(config, workdir, data, Hooks(**hooks), session)


def epochs_of(config, count):
    changed = config.copy_and_resolve_references()
    changed.num_epochs = count
    return changed


def start_run(folder, source, cache_folder, *more, epochs):
    """Starts `python -m bn_vgg.main` for a tiny run in a folder."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "bn_vgg.main", "--config=tests/tiny_config.py",
            f"--config.data.source={source}", f"--config.num_epochs={epochs}",
            f"--workdir={folder}", f"--cache_dir={cache_folder}", *map(str, more),
        ],
        cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_checkpoint(folder, process, epochs=3):
    """An epoch's checkpoint is on disk when the next one's is begun, after that one's line."""
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
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_equal_runs(left, right):
    """Lines, result and the states of both checkpoints, bit for bit."""
    assert lines(left) == lines(right)
    assert result(left) == result(right)
    for which in ("best", "latest"):
        same(load(str(left), which).state, load(str(right), which).state)
