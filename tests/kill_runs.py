"""Kills runs at random moments, by SIGKILL: each has to end like one that was left alone.

python -m tests.kill_runs --kills=50 --seed=1
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
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


def kill_runs(folder, kills, seed):
    """Kills the command so often; a run that ends is compared, and followed by another.

    Returns how many runs have ended, and how many kills left a checkpoint to go on from.
    """
    rng, cache, undisturbed = random.Random(seed), folder / "cache", folder / "undisturbed"
    for path in (undisturbed, folder / "timed"):  # the second one finds all compiled
        began = time.monotonic()
        assert start(path, folder / "cache0").wait(600) == 0
    seconds, runs, landed, resumable = time.monotonic() - began, 0, 0, 0
    while landed < kills:
        run = folder / f"run{runs}"
        before, process = newest(run), start(run, cache)
        try:
            out, _ = process.communicate(timeout=rng.uniform(0.2, 1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            landed, resumable = landed + 1, resumable + (newest(run) > 0)
        assert_whole(run, before, out)
        if landed == kills:
            assert start(run, cache).wait(600) == 0
        if (run / "result.json").exists():
            assert process.returncode in (0, -9), out
            assert_equal_runs(run, undisturbed)
            runs += 1
            shutil.rmtree(cache)
    return runs, resumable


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs, resumable = kill_runs(pathlib.Path(folder), given.kills, given.seed)
    print(
        f"{given.kills} kills, {resumable} with a checkpoint; {runs} runs equal the undisturbed one"
    )


if __name__ == "__main__":
    main()
