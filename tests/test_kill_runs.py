"""Kills runs at random moments, by SIGKILL: each has to end like one that was left alone."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

from bn_vgg.checkpoint import steps
from bn_vgg.run_dir import Workdir
from tests.conftest import ROOT
from tests.runs import assert_equal_runs

# With checkpoints within epochs, dropout, and a cache that takes long enough to be hit.
ARGUMENTS = (
    "--config=tests/tiny_config.py", "--config.model.norm=full", "--config.model.dropout_rate=0.3",
    "--config.model.stats_pass=dropout", "--config.data.source=cartoons:300",
    "--config.num_epochs=3", "--config.checkpoint.every_steps=7", "--notensorboard",
)  # fmt: skip


def start(folder, cache):
    """Starts the command; what is compiled is shared by all."""
    shared = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    shared["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    return subprocess.Popen(
        [sys.executable, "-m", "bn_vgg.main", *ARGUMENTS, f"--workdir={folder}",
         f"--cache_dir={cache}"],
        cwd=ROOT, env=os.environ | shared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def newest(folder):
    """The step of the newest checkpoint that is complete, or 0."""
    return max(steps(Workdir(str(folder)).checkpoints), default=0)


def assert_whole(folder, before, out):
    """After a kill: lines are whole, and what was complete has been gone on from."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    for step in re.findall(r"resuming after epoch \d+ \(step (\d+)\)", out):
        assert int(step) == before
    assert "damaged" not in out
    assert newest(folder) >= before


def test_killed_at_random_moments(tmp_path):
    """A run that ends is compared, and followed by another, without images in the cache."""
    kills = int(os.environ.get("BN_VGG_KILLS", 3))
    seed = int(os.environ.get("BN_VGG_KILL_SEED", random.randrange(10**6)))
    print(f"BN_VGG_KILL_SEED={seed}")
    rng, cache, undisturbed = random.Random(seed), tmp_path / "cache", tmp_path / "undisturbed"
    began = time.monotonic()
    assert start(undisturbed, tmp_path / "cache0").wait(600) == 0
    seconds, runs, landed = time.monotonic() - began, 0, 0
    while landed < kills:
        run = tmp_path / f"run{runs}"
        before, process = newest(run), start(run, cache)
        try:
            # The others find all compiled, and take about half as long as the first.
            out, _ = process.communicate(timeout=rng.uniform(0.1, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            landed += 1
        assert_whole(run, before, out)
        if landed == kills:
            assert start(run, cache).wait(600) == 0
        if (run / "result.json").exists():
            assert process.returncode in (0, -9), out
            assert_equal_runs(run, undisturbed)
            runs += 1
            shutil.rmtree(cache)
