"""Times whole runs: an epoch with everything that belongs to it, and how soon one starts."""

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from bn_vgg.data.batches import Images
from bn_vgg.feed import Feed
from bn_vgg.hooks import Hooks
from bn_vgg.parallel import Devices
from ml_collections import ConfigDict

from bn_vgg import train
from bn_vgg.data import batches
from bn_vgg.evaluation import Evaluator
from bn_vgg.launch import prepare_data
from bn_vgg.programs import make_programs
from bn_vgg.run_dir import Workdir
from bn_vgg.steps import empty_evaluation
from experiments.timing.step_timing import STEPS, Timed, dispatch, take_turns

ROOT = Path(__file__).resolve().parents[2]
_FIRST_STEPS = "steps are done"


def measure_training(config: ConfigDict, cache_folder: Path) -> dict[str, Any]:
    """Times a run, and the bare training and evaluation steps before and after it.

    The first epoch compiles: rates are medians of the others. An epoch is its training, its
    evaluation by five windows, precise statistics, its checkpoint and its records.

    Returns:
      Rates and shares, and `seconds`: of the `cache` of images, of `compiling`, of `training` and
      of `evaluation` (both as many epochs as there are of the median), of the `rest` and of it all.
    """
    started = time.perf_counter()
    data = prepare_data(config, cache_folder)
    cache_seconds = time.perf_counter() - started
    windows = np.zeros((config.batch_size, *[config.data.crop_size] * 2, 3), np.uint8)
    labels = np.zeros(config.batch_size, np.int32)
    bare = [
        Timed(dispatch(config, windows, labels), STEPS),
        Timed(_evaluation(config, Images.of(data.cache, data.splits.valid)), 1),
    ]
    take_turns(bare, 3)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(folder)
        workdir.claim(config.to_dict(), data.about)
        with (
            _timing(Evaluator, "evaluate") as evaluating,
            _timing(Evaluator, "observe") as observing,
            _compiling() as compiling,
        ):
            started = time.perf_counter()
            train.train(config, workdir, data, Hooks(say=print))
            run_seconds = time.perf_counter() - started
        lines = workdir.read_metrics()
    take_turns(bare, 3)
    step, evaluation = (statistics.median(one.seconds) for one in bare)
    steps = batches.num_train_batches(len(data.splits.train), config.batch_size)
    trained = steps * config.batch_size
    whole = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(lines)]
    epoch = statistics.median(whole)
    in_training = statistics.median(line["train/images_per_second"] for line in lines[1:])
    in_evaluation = statistics.median(evaluating[1:-1]) + statistics.median(observing[1:])
    parts = {
        "compiling": sum(compiling),
        "training": len(lines) * trained / in_training,
        "evaluation": len(lines) * in_evaluation,
    }
    return {
        "config": config.name,
        "source": config.data.source,
        "epochs": len(lines),
        "seconds": {
            "cache": cache_seconds, **parts,
            "rest": run_seconds - sum(parts.values()), "in all": cache_seconds + run_seconds,
        },
        "train_images": trained,
        "valid_images": len(data.splits.valid),
        "bare_images_per_second": config.batch_size / step,
        "bare_evaluation_seconds": evaluation,
        "epoch_seconds": epoch,
        "training_images_per_second": in_training,
        # The bare step's time, by that of a step in training, with its data.
        "share_of_bare_in_training": in_training * step / config.batch_size,
        # The bare training and evaluation steps' time, by an epoch's; the training steps' alone.
        "share_of_bare_in_epoch": (steps * step + evaluation) / epoch,
        "training_share_of_epoch": steps * step / epoch,
        "lens_share_of_epoch": statistics.median(observing[1:]) / epoch,
    }  # fmt: skip


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    """Yields a list that grows by the seconds of each compilation."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _evaluation(config: ConfigDict, images: Images):
    """Returns a function that evaluates a split; its windows' places are on the device."""
    devices = Devices()
    programs = make_programs(config.model, config.optimizer, config.data.crop_size, devices)
    feed = Feed(images, devices, crop_size=config.data.crop_size, on_device=True)
    plan = batches.eval_batches(
        feed.images, batch_size=config.eval.batch_size, crop_size=config.data.crop_size
    )
    side = config.data.crop_size
    state = programs.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))
    state = devices.replicate(state)
    dispatches = list(feed.dispatches(plan))

    def evaluate() -> None:
        carried = devices.replicate(empty_evaluation(programs.model))
        for each in dispatches:
            carried = programs.eval_steps(carried, state, each.batches, feed.pixels)
        jax.block_until_ready(carried)

    return evaluate


@contextlib.contextmanager
def _timing(kind: type, method: str) -> Iterator[list[float]]:
    """Yields a list that grows by the seconds of each call of a class's method."""
    seconds, original = [], getattr(kind, method)

    def timed(*args, **kwargs):
        started = time.perf_counter()
        result = original(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return result

    with mock.patch.object(kind, method, timed):
        yield seconds


def measure_start(arguments: list[str], cache_folder: Path, warm_starts: int) -> dict[str, Any]:
    """Times the command from its start to its first finished steps, in new processes.

    Cold: nothing compiled is kept, but the images are decoded. Warm: compiled programs are.
    """
    with tempfile.TemporaryDirectory() as folder:
        seconds = [
            _start(arguments, cache_folder, Path(folder), number)
            for number in range(warm_starts + 1)
        ]
    return {
        "arguments": arguments,
        "cold_seconds": seconds[0],
        "warm_seconds": statistics.median(seconds[1:]),
        "warm_spread": [min(seconds[1:]), max(seconds[1:])],
    }


def _start(arguments: list[str], cache_folder: Path, folder: Path, number: int) -> float:
    workdir = folder / f"run{number}"
    command = [
        sys.executable, "-m", "bn_vgg.main", *arguments,
        f"--workdir={workdir}", f"--cache_dir={cache_folder}",
    ]  # fmt: skip
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        log = workdir / "log.txt"
        while not (log.exists() and _FIRST_STEPS in log.read_text()):
            if process.poll() is not None:
                raise RuntimeError(f"{command} failed: {process.communicate()[1].decode()}")
            time.sleep(0.01)
        return time.monotonic() - started
    finally:
        process.kill()
        process.wait()
