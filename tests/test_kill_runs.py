"""Kills runs at random moments, by SIGKILL: each has to end like one that was left alone."""

import json
import os
import random
import re
import shutil
import signal
import time

import pytest

from bn_vgg.checkpoint import list_steps
from bn_vgg.run_dir import Workdir
from tests.runs import assert_equal_runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

# With checkpoints within epochs, dropout, and a cache that takes long enough to be hit.
ARGUMENTS = (
    "--config=tests/tiny_config.py", "--config.model.norm=full", "--config.model.dropout_rate=0.3",
    "--config.model.stats_pass=dropout", "--config.data.source=cartoons:300",
    "--config.num_epochs=3", "--config.checkpoint.every_steps=7", "--notensorboard",
)  # fmt: skip


def newest(folder):
    """The step of the newest checkpoint that is complete, or 0."""
    return max(list_steps(Workdir(str(folder)).checkpoints), default=0)


def assert_whole(folder, before, out):
    """After a kill: lines are whole, and what was complete has been gone on from."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    for step in re.findall(r"resuming after epoch \d+ \(step (\d+)\)", out):
        assert int(step) == before
    assert "damaged" not in out
    assert newest(folder) >= before


def test_killed_at_random_moments(fork_command, tmp_path):
    """A run that ends is compared, and followed by another, without images in the cache."""
    kills = int(os.environ.get("BN_VGG_KILLS", 3))
    seed = int(os.environ.get("BN_VGG_KILL_SEED", random.randrange(10**6)))
    print(f"BN_VGG_KILL_SEED={seed}")
    rng, cache, undisturbed = random.Random(seed), tmp_path / "cache", tmp_path / "undisturbed"

    def train(folder, limit=300):
        paths = f"--workdir={folder}", f"--cache_dir={cache}"
        return fork_command("main", *ARGUMENTS, *paths, status=None, limit=limit)

    began = time.monotonic()
    assert train(undisturbed).returncode == 0
    seconds, runs, landed = time.monotonic() - began, 0, 0
    while landed < kills:
        run = tmp_path / f"run{runs}"
        if not run.exists():
            for images in cache.glob("images-*"):  # what is compiled stays
                shutil.rmtree(images)
        # The others find all compiled, and take less time than the first.
        before, done = newest(run), train(run, rng.uniform(0.05, 0.6) * seconds)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        landed += done.returncode == -signal.SIGKILL
        assert_whole(run, before, done.stdout + done.stderr)
        if landed == kills:
            assert train(run).returncode == 0
        if (run / "result.json").exists():
            assert_equal_runs(run, undisturbed)
            runs += 1
