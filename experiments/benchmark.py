"""Measures speed on whatever hardware there is, side by side with PyTorch.

python -m experiments.benchmark --output=DIR

For each normalization: images/s of the bare training step (a chunk of ten, as in a run, its data
on the device already) and of the same network in PyTorch, taking turns within one process. Then a
whole run beside its bare step (`--epochs`), and how soon the demo starts (`--starts`). PyTorch is
optional: pip install -e '.[benchmark]'.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from bn_vgg import cli, config_file, provenance
from bn_vgg.data.cache import choose_folder, open_or_build
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from bn_vgg.programs import Programs
from bn_vgg.run_dir import Workdir
from bn_vgg.steps import to_intensities

try:
    from experiments import torch_vgg
except ImportError:  # PyTorch is optional
    torch_vgg = None  # type: ignore[assignment]

_OUTPUT = flags.DEFINE_string("output", None, "Folder for benchmark.json.", required=True)
_NORMS = flags.DEFINE_list("norms", ["none", "mean_only", "full"], "Normalizations to time.")
_SIZES = flags.DEFINE_list("sizes", ["128", "48"], "Sides of the images, in pixels.")
_DROPOUTS = flags.DEFINE_list("dropouts", ["0"], "Dropout rates.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each takes.", lower_bound=1)
_RUN = flags.DEFINE_string(
    "run", "configs/meanonly_crop.py:small", "The network's configuration and the whole run's."
)
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of it; may be repeated.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Of that run; 0 for none.", lower_bound=0)
_STARTS = flags.DEFINE_integer("starts", 0, "Warm starts of the demo to time.", lower_bound=0)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")

_ROOT = Path(__file__).resolve().parents[1]
# Steps that are timed together: a chunk of an accelerator's.
_STEPS = 10


def main() -> None:
    """Runs the command."""
    if _EPOCHS.value == 1:
        raise UserError("--epochs=1: the first epoch compiles, and does not count; 2 at least")
    # Otherwise JAX takes most of a GPU's memory, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    settings = ["data.source=cartoons:25000", *_SET.value]
    arguments = [f"--config={_RUN.value}", *(f"--config.{each}" for each in settings)]
    config = config_file.load_config(arguments)
    Devices().check(config.batch_size, config.model.precision)
    torch = torch_vgg.torch.__version__ if torch_vgg else None
    about: dict[str, Any] = {
        "command": provenance.command(), "commit": provenance.commit(),
        "hardware": provenance.hardware(), "versions": provenance.versions() | {"torch": torch},
        "dtype": config.model.dtype, "precision": config.model.precision, "rows": [],
    }  # fmt: skip
    # What is measured is written as it comes: a later part may fail.
    for name, part in _measure_all(arguments, choose_folder(_CACHE_DIR.value)):
        about |= {name: about["rows"] + part if name == "rows" else part}
        cli.show(json.dumps(part, indent=1))
        with cli.replacing(Path(_OUTPUT.value) / "benchmark.json") as partial:
            partial.write_text(json.dumps(about, indent=1) + "\n")


def _measure_all(arguments: list[str], cache_folder: Path) -> Iterator[tuple[str, Any]]:
    if _STARTS.value:
        cli.show(f"starting the demo {_STARTS.value + 1} times ...")
        yield "start", measure_start(cache_folder, _STARTS.value)
    if _EPOCHS.value:
        cli.show(f"a run of {_EPOCHS.value} epochs, and its bare step ...")
        arguments_of_run = [*arguments, f"--config.num_epochs={_EPOCHS.value}"]
        yield "training", measure_training(arguments_of_run, cache_folder, _ROUNDS.value)
    for size, dropout in itertools.product(_SIZES.value, _DROPOUTS.value):
        config = config_file.load_config(arguments)
        config.data.crop_size = int(size)
        config.model.dropout_rate = float(dropout)
        # One pass, as in PyTorch; the recipe's takes its statistics from a second one.
        config.model.stats_pass = "dropout"
        yield "rows", measure_steps(config, _NORMS.value, _ROUNDS.value)


def _turn_of(steps: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that repeats `_STEPS` steps for about a second: the seconds of one."""
    time_it = timeit.Timer(steps).timeit
    time_it(1)  # compiles
    repeats = max(1, round(1 / time_it(1)))
    return lambda: time_it(repeats) / repeats / _STEPS


def measure_steps(config: ConfigDict, norms: list[str], rounds: int) -> list[dict[str, Any]]:
    """Times the networks of `config` with each normalization, all taking turns.

    What else the machine does is so shared fairly.

    Returns:
      A row for each normalization: medians of images/s with the least and the most, and ratios of
      neighbouring turns: `times_torch`, and `seconds_of_none`, its step's time in none's.
    """
    turns: dict[tuple[str, str], Callable[[], float]] = {}
    side, rate = config.data.crop_size, config.model.dropout_rate
    for norm in norms:
        config.model.norm = norm
        cli.show(f"compiling {norm}, {side}x{side}, dropout {rate:g} ...")
        images, labels = _random_batch(config)
        turns[norm, "jax"] = _turn_of(_chunk(config, images, labels))
        if torch_vgg is not None and norm in torch_vgg.NORMS:
            steps = torch_vgg.make_steps(
                config.model.to_dict(), config.optimizer.to_dict(), images, labels, _STEPS
            )
            turns[norm, "torch"] = _turn_of(steps)
    cli.show(f"timing {rounds} turns of each ...")
    taken = [{key: turn() for key, turn in turns.items()} for _ in range(rounds)]
    rows = {norm: {"size": side, "norm": norm, "dropout": rate} for norm in norms}
    for norm, name in turns:
        rates = [config.batch_size / seconds[norm, name] for seconds in taken]
        rows[norm][f"{name}_images_per_second"] = statistics.median(rates)
        rows[norm][f"{name}_spread"] = [min(rates), max(rates)]
        for ratio, above, below in (
            ("times_torch", (norm, "torch"), (norm, "jax")),
            ("seconds_of_none", (norm, "jax"), ("none", "jax")),
        ):
            if {above, below} <= turns.keys():
                rows[norm][ratio] = statistics.median(each[above] / each[below] for each in taken)
    return list(rows.values())


def _random_batch(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Draws images (N, H, W, 3), uint8, and labels (N,), int32, of a batch of `config`."""
    side, count = config.data.crop_size, config.batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return images, rng.integers(0, 2, count, np.int32)


def _chunk(config: ConfigDict, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """Returns a function that does `_STEPS` updates as a run does, with its data on the device."""
    devices = Devices()
    programs = Programs(config.to_dict(), devices, steps_per_epoch=200)
    positions = np.arange(len(labels), dtype=np.int32)
    batch = {"crops": images[:, None], "label": labels, "position": positions}
    batches = devices.shard({key: np.stack([array] * _STEPS) for key, array in batch.items()})
    state = programs.init(jax.random.key(0), to_intensities(images[:1]))
    state, key = devices.replicate((state, jax.random.key(1)))
    metrics = programs.empty_training

    def steps() -> None:
        nonlocal state, metrics
        state, metrics = programs.train_chunk((state, metrics), key, batches, None)
        jax.block_until_ready(state)

    return steps


def measure_training(arguments: list[str], cache_folder: Path, rounds: int) -> dict[str, Any]:
    """Times a run and the bare training step.

    The first epoch compiles: numbers are medians of the others. An epoch is its training, its
    five-crop evaluation, precise statistics, its checkpoint and its records.
    """
    config = config_file.load_config(arguments)
    with tempfile.TemporaryDirectory() as folder:
        with _start(arguments, cache_folder, folder) as process:
            errors = process.communicate()[1].decode().strip()
        if process.returncode:
            raise UserError(f"the run failed: {errors}")
        workdir = Workdir(folder, writes=False)
        lines, examples = workdir.read_metrics(), workdir.read("data.json")["examples"]
    turn = _turn_of(_chunk(config, *_random_batch(config)))
    step = statistics.median(turn() for _ in range(rounds))
    steps = examples["train"] // config.batch_size
    ends = [line["seconds"] for line in lines]
    epoch = statistics.median(after - before for before, after in itertools.pairwise(ends))
    rate = statistics.median(line["train/images_per_second"] for line in lines[1:])
    return {
        "config": config.name, "source": config.data.source, "epochs": config.num_epochs,
        "train_images": steps * config.batch_size, "valid_images": examples["valid"],
        "epoch_seconds": epoch,
        "bare_images_per_second": config.batch_size / step, "training_images_per_second": rate,
        "share_of_bare_in_training": rate * step / config.batch_size,
        "training_share_of_epoch": steps * step / epoch,
    }  # fmt: skip


def measure_start(cache_folder: Path, warm_starts: int) -> dict[str, Any]:
    """Times the demo from its start to its first finished steps, in new processes.

    Cold: nothing compiled is kept, but the images are decoded. Warm: compiled programs are.
    """
    seconds = []
    arguments = ["--config=configs/meanonly_crop.py:demo"]
    data = config_file.load_config(arguments).data
    open_or_build(data.source, min_side=data.min_side, folder=cache_folder)
    with tempfile.TemporaryDirectory() as folder:
        environment = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        for number in range(warm_starts + 1):
            workdir = Path(folder) / f"run{number}"
            log, started = workdir / "log.txt", time.monotonic()
            with _start(arguments, cache_folder, str(workdir), **environment) as process:
                while not (log.exists() and "steps are done" in log.read_text()):
                    if process.poll() is not None:
                        raise UserError(f"it failed: {process.stderr.read().decode().strip()}")
                    time.sleep(0.01)
                seconds.append(time.monotonic() - started)
                process.kill()
    return {"cold_seconds": seconds[0], "warm_seconds": seconds[1:]}


def _start(arguments: list[str], cache_folder: Path, workdir: str, **environment: str) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", "bn_vgg.main", *arguments, f"--workdir={workdir}",
         f"--cache_dir={cache_folder}"],
        cwd=_ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
