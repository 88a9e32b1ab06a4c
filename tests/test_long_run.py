"""Over 200 epochs nothing grows: memory of host and device, open files, threads.

Also the script that the test runs, so that nothing else is in the process:
python -m tests.test_long_run SOURCE CACHE WORKDIR
"""

import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys

import jax
import psutil
import pytest

from bn_vgg import cli
from bn_vgg import train as loop
from bn_vgg.data import cache as image_cache
from bn_vgg.data.prepared import prepare
from bn_vgg.hooks import Hooks
from bn_vgg.run_dir import Workdir
from bn_vgg.writers import make_hooks
from tests.conftest import ROOT
from tests.tiny_config import get_config

EPOCHS, STEPS_PER_EPOCH = 200, 6
# Epochs between two samples. The first 50 epochs warm up.
EVERY, WARM = 5, 50
# How much more the last third of the samples may have, by the median, than the first: 100
# epochs later. What the allocator keeps goes up and down by a few MiB; a sample can fall into
# the writing of a checkpoint, which has files open and threads.
MOST_GROWTH = {"memory": 8 * 2**20, "on_devices": 0, "arrays": 0, "files": 8, "threads": 8}


def sample():
    gc.collect()  # what is only waiting to be freed is no leak
    process = psutil.Process()
    return {
        "memory": process.memory_info().rss,
        "on_devices": sum(array.nbytes for array in jax.live_arrays()),
        "arrays": len(jax.live_arrays()),
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


@pytest.mark.slow
def test_nothing_grows(cartoon_folder, cache_folder, tmp_path):
    arguments = [sys.executable, "-m", "tests.test_long_run", cartoon_folder, cache_folder]
    done = subprocess.run(
        [*arguments, tmp_path / "run"], cwd=ROOT, env=os.environ,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout.splitlines()[-1])
    assert len(samples) == EPOCHS // EVERY
    assert len(list((tmp_path / "run").glob("events*"))) == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == EPOCHS
    warm = samples[WARM // EVERY :]
    third = len(warm) // 3
    first, last = warm[:third], warm[-third:]
    for name, most in MOST_GROWTH.items():
        before, after = (statistics.median(each[name] for each in part) for part in (first, last))
        assert after - before <= most, (name, first, last)


def main():
    source, cache_folder, path = sys.argv[1:]
    config = get_config()
    config.data.source, config.num_epochs = source, EPOCHS
    config.model.features = (4, 4)
    cli.keep_compiled(pathlib.Path(cache_folder))
    cache = image_cache.open_or_build(
        source, min_side=config.data.min_side, folder=pathlib.Path(cache_folder), quiet=True
    )
    data, workdir, samples = prepare(cache, config), Workdir(path), []
    workdir.claim(config.to_dict(), data.about)
    cli.log_to_file(workdir.path / "log.txt")

    def sample_now_and_then(step):
        if step % (EVERY * STEPS_PER_EPOCH) == 0:
            samples.append(sample())

    hooks = make_hooks(
        Hooks(actions=[sample_now_and_then]), workdir.path, "long",
        num_steps=EPOCHS * STEPS_PER_EPOCH, profile=False,
    )  # fmt: skip
    loop.train(config, workdir, data, hooks)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
