"""Measures the training step's speed, side by side with PyTorch.

python -m experiments.benchmark --output=DIR

For each normalization it times chunks of ten training steps, with data on the device, and the same
network in PyTorch, alternating within one process. PyTorch is optional:
pip install -e '.[benchmark]'.
"""

import itertools
import json
import os
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from bn_vgg import cli, config_file, provenance
from bn_vgg.augment import to_intensities
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from bn_vgg.programs import Programs

try:
    from experiments import torch_vgg
except ImportError:  # PyTorch is optional
    torch_vgg = None  # type: ignore[assignment]

_OUTPUT = flags.DEFINE_string("output", None, "Folder for benchmark.json.", required=True)
_NORMS = flags.DEFINE_list("norms", ["none", "mean_only", "full"], "Normalizations to time.")
_SIZES = flags.DEFINE_list("sizes", ["128", "48"], "Sides of the images, in pixels.")
_DROPOUTS = flags.DEFINE_list("dropouts", ["0"], "Dropout rates.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each.", lower_bound=1)
_RUN = flags.DEFINE_string("run", "configs/meanonly_crop.py:small", "The configuration.")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the configuration; may be repeated.")

# Steps of a chunk, as on an accelerator.
_STEPS_PER_CHUNK = 10


def main() -> None:
    """Runs the command."""
    # Leave GPU memory for PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    arguments = [f"--config={_RUN.value}", *(f"--config.{each}" for each in _SET.value)]
    config = config_file.load_config(arguments)
    if jax.device_count() > 1:
        raise UserError("it times one device: let JAX see one, by CUDA_VISIBLE_DEVICES=0, say")
    Devices().check(config.batch_size, config.model.precision)
    provenance.pin_jax_settings(config.model)
    torch = torch_vgg.torch.__version__ if torch_vgg else None
    about: dict[str, Any] = {
        "command": provenance.command(), "commit": provenance.commit(),
        "hardware": provenance.hardware(), "versions": provenance.versions() | {"torch": torch},
        "dtype": config.model.dtype, "precision": config.model.precision, "rows": [],
    }  # fmt: skip
    # Written after each size, because a later one may fail.
    for size, dropout in itertools.product(_SIZES.value, _DROPOUTS.value):
        config.data.crop_size = int(size)
        config.model.dropout_rate = float(dropout)
        # As in PyTorch, without the recipe's second pass for statistics.
        config.model.stats_pass = "dropout"
        rows = measure_steps(config, _NORMS.value, _ROUNDS.value)
        about["rows"] += rows
        cli.show(json.dumps(rows, indent=1))
        with cli.atomic_write(Path(_OUTPUT.value) / "benchmark.json") as partial:
            partial.write_text(json.dumps(about, indent=1) + "\n")


def _make_timer(steps: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that measures the seconds of one step, over about a second."""
    time_it = timeit.Timer(steps).timeit
    time_it(1)  # compiles
    repeats = max(1, round(1 / time_it(1)))
    return lambda: time_it(repeats) / repeats / _STEPS_PER_CHUNK


def measure_steps(config: ConfigDict, norms: list[str], rounds: int) -> list[dict[str, Any]]:
    """Times the networks of `config` with each normalization, alternating between them.

    Returns:
      A row for each normalization: the median of images/s with minimum and maximum, and the medians
      of ratios in the same round: `times_torch`, the speed relative to PyTorch's, and
      `seconds_of_none`, the step's time relative to that without normalization.
    """
    timers: dict[tuple[str, str], Callable[[], float]] = {}
    side, rate = config.data.crop_size, config.model.dropout_rate
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.batch_size, side, side, 3), np.uint8)
    labels = rng.integers(0, 2, config.batch_size, np.int32)
    for norm in norms:
        config.model.norm = norm
        cli.show(f"compiling {norm}, {side}x{side}, dropout {rate:g} ...")
        timers[norm, "jax"] = _make_timer(_chunk(config, images, labels))
        recipe = (config.model.name, config.optimizer.name) == ("vgg8", "rmsprop")
        if torch_vgg is not None and recipe and norm in torch_vgg.NORMS:
            settings = config.model.to_dict(), config.optimizer.to_dict()
            steps = torch_vgg.make_steps(*settings, images, labels, _STEPS_PER_CHUNK)
            timers[norm, "torch"] = _make_timer(steps)
    cli.show(f"timing {rounds} rounds ...")
    measured = [{key: timer() for key, timer in timers.items()} for _ in range(rounds)]
    rows = {norm: {"size": side, "norm": norm, "dropout": rate} for norm in norms}
    for norm, name in timers:
        rates = [config.batch_size / seconds[norm, name] for seconds in measured]
        rows[norm][f"{name}_images_per_second"] = statistics.median(rates)
        rows[norm][f"{name}_spread"] = [min(rates), max(rates)]
        for ratio, above, below in (
            ("times_torch", (norm, "torch"), (norm, "jax")),
            ("seconds_of_none", (norm, "jax"), ("none", "jax")),
        ):
            if {above, below} <= timers.keys():
                rows[norm][ratio] = statistics.median(x[above] / x[below] for x in measured)
    return list(rows.values())


def _chunk(config: ConfigDict, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """Returns a function that does `_STEPS_PER_CHUNK` updates, with the data on the device."""
    devices = Devices()
    programs = Programs(config.to_dict(), devices, steps_per_epoch=200)
    positions = np.arange(len(labels), dtype=np.int32)
    batch = {"crops": images[:, None], "label": labels, "position": positions}
    batches = devices.shard(
        {key: np.stack([array] * _STEPS_PER_CHUNK) for key, array in batch.items()}
    )
    state = programs.init(jax.random.key(0), to_intensities(images[:1]))
    state, key = devices.replicate((state, jax.random.key(1)))
    metrics = programs.empty_training

    def steps() -> None:
        nonlocal state, metrics
        state, metrics = programs.train_chunk((state, metrics), key, batches, None)
        jax.block_until_ready(state)

    return steps


if __name__ == "__main__":
    cli.run(main)
