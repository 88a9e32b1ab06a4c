"""Times training steps on whatever hardware there is, side by side with PyTorch.

python -m experiments.benchmark --output=experiments/results/benchmark

For each normalization, image size and dropout rate: images/s of the bare step (one batch,
on the device, again and again), of the same step with XLA's own convolution gradients where
`--plain` is given, and of the same network in PyTorch; the three take turns within one run,
and the ratios are of neighbours in time. PyTorch is optional (pip install torch).
"""

import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bn_vgg import command, provenance, vgg
from bn_vgg.convolution import plain_conv
from bn_vgg.errors import UserError
from bn_vgg.normalization import NORMALIZERS
from bn_vgg.optimizer import rmsprop
from bn_vgg.parallel import Devices
from bn_vgg.state import init_state
from bn_vgg.steps import make_train_step
from bn_vgg.vgg import DTYPES, PADDINGS, make_model
from configs import default

_OUTPUT = flags.DEFINE_string("output", None, "Folder for benchmark.json and .md.", required=True)
_NORMS = flags.DEFINE_list("norms", list(NORMALIZERS), "Normalizations to time.")
_SIZES = flags.DEFINE_list("sizes", ["128", "48"], "Sides of the windows, in pixels.")
_DROPOUTS = flags.DEFINE_list("dropouts", ["0"], "Dropout rates.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the computation.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns that each takes.", lower_bound=1)
_PLAIN = flags.DEFINE_bool("plain", False, "Also time XLA's own convolution gradients.")


class Timed:
    """A step that takes its turns.

    Attributes:
      compile_seconds: of the first call.
      seconds: of the calls that counted, each the mean of as many steps as take a second.
    """

    def __init__(self, step: Callable[[], Any]):
        started = time.perf_counter()
        step()
        self.compile_seconds = time.perf_counter() - started
        started = time.perf_counter()
        step()
        self._step = step
        self._repeats = max(1, round(1 / (time.perf_counter() - started)))
        self.seconds: list[float] = []

    def take_a_turn(self) -> None:
        """Times the step once more."""
        started = time.perf_counter()
        for _ in range(self._repeats):
            self._step()
        self.seconds.append((time.perf_counter() - started) / self._repeats)


def main() -> None:
    """Runs the command."""
    command.log_to_file(None)
    output = Path(_OUTPUT.value)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    about: dict[str, Any] = {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions() | {"torch": _torch_version()},
        "dtype": _DTYPE.value,
        "ceilings": measure_ceilings(),
    }
    rows = []
    for size, norm, dropout in itertools.product(_SIZES.value, _NORMS.value, _DROPOUTS.value):
        rows.append(measure(int(size), norm, float(dropout), about["ceilings"]))
        print(rows[-1], flush=True)
    about["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (output / "benchmark.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    (output / "benchmark.md").write_text(markdown(about, rows))
    print(f"{output}/benchmark.md")


def measure(size: int, norm: str, dropout: float, ceilings: dict[str, float]) -> dict[str, Any]:
    """Times one network, the contenders taking turns."""
    config = default.get_config()
    settings = config.model.to_dict() | {
        "norm": norm,
        "dropout_rate": dropout,
        "dtype": _DTYPE.value,
    }
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8)
    labels = rng.integers(0, 2, config.batch_size, np.int32)
    optimizer = config.optimizer.to_dict()
    contenders = {"jax": Timed(make_step(settings, optimizer, images, labels))}
    if _PLAIN.value:
        with mock.patch.object(vgg, "conv3x3", plain_conv):
            plain = make_step(settings, optimizer, images, labels)
            contenders["plain"] = Timed(plain)
    if _torch_version() is not None:
        from experiments import torch_vgg

        contenders["torch"] = Timed(torch_vgg.make_step(settings, optimizer, images, labels))
    for _ in range(_ROUNDS.value):
        for contender in contenders.values():
            contender.take_a_turn()
    row: dict[str, Any] = {"size": size, "norm": norm, "dropout": dropout}
    for name, contender in contenders.items():
        rates = [config.batch_size / seconds for seconds in contender.seconds]
        row[f"{name}_images_per_second"] = statistics.median(rates)
        row[f"{name}_spread"] = [min(rates), max(rates)]
        row[f"{name}_compile_seconds"] = contender.compile_seconds
        if name != "jax":
            pairs = zip(contender.seconds, contenders["jax"].seconds, strict=True)
            row[f"times_{name}"] = statistics.median(other / ours for other, ours in pairs)
    flops = step_flops(settings, config.batch_size, size)
    floor = flops / ceilings["flops_per_second"]
    row["share_of_arithmetic_floor"] = floor / statistics.median(contenders["jax"].seconds)
    return row


def make_step(
    model: dict[str, Any], optimizer: dict[str, Any], images: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
    """Returns a function that does one update of one batch and waits for it."""
    network, updates = make_model(**model), rmsprop(**optimizer)
    state = init_state(network, updates, jax.random.key(0), images.shape[1:])
    batch = {
        "images_NHWC": images,
        "labels_N": labels,
        "positions_N": np.arange(len(labels), dtype=np.int32),
    }
    batch, key = jax.device_put((batch, jax.random.key(1)))
    compiled = Devices().compile(make_train_step(network, updates), donate_argnums=(0,))

    def step() -> None:
        nonlocal state
        state, _ = compiled(state, batch, key)
        jax.block_until_ready(state)

    return step


def step_flops(model: dict[str, Any], batch_size: int, size: int) -> float:
    """Counts a training step's multiplications and additions in its matrix products.

    Forward once, and twice backward: for the inputs, but the images, and for the weights.
    """
    padding = PADDINGS[model["padding"]]
    total, channels, side = 0.0, 3, size
    for i, features in enumerate(model["features"]):
        side += 2 * padding - 2
        total += (2 if i == 0 else 3) * 2 * 9 * channels * features * side * side
        channels, side = features, side // 2 if i % 2 == 1 else side
    hidden = model["hidden_units"]
    total += 3 * 2 * hidden * (channels * side * side + model["num_classes"])
    return batch_size * total


def measure_ceilings() -> dict[str, float]:
    """Measures a large matrix product (FLOP/s) and a large copy (bytes/s) on the device."""
    dtype = DTYPES[_DTYPE.value]
    square = jax.random.normal(jax.random.key(0), (2048, 2048), dtype)
    product = jax.jit(lambda x: x @ x)
    copied = jax.jit(lambda x: x + 1)
    flat = jnp.zeros(2**26, jnp.float32)

    def fastest(function, argument) -> float:
        jax.block_until_ready(function(argument))
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            jax.block_until_ready(function(argument))
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return {
        "flops_per_second": 2 * 2048**3 / fastest(product, square),
        "bytes_per_second": 2 * flat.nbytes / fastest(copied, flat),
    }


def markdown(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Makes the table, with where it comes from."""
    hardware, versions = about["hardware"], about["versions"]
    lines = [
        f"`{about['command']}`, commit {about['commit']}",
        "",
        f"{hardware['num_devices']} {hardware['device']} ({hardware['cpu_cores']} cores), "
        f"{about['dtype']}, batch 100; jax {versions['jax']}, torch {versions['torch']}. "
        "Medians of images/s (least to most); the ratio is the median over neighbouring turns.",
        "",
        "| size | norm | dropout | this code | PyTorch | times PyTorch | XLA's own gradients | "
        "times those | of the arithmetic floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [str(row["size"]), row["norm"], f"{row['dropout']:g}", _rate(row, "jax")]
        for other in ("torch", "plain"):
            measured = f"times_{other}" in row
            cells.append(_rate(row, other) if measured else "not measured")
            cells.append(f"**{row[f'times_{other}']:.2f}**" if measured else "")
        cells.append(f"{row['share_of_arithmetic_floor']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rate(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_spread"]
    return f"{row[f'{name}_images_per_second']:.0f} ({low:.0f} to {high:.0f})"


def _torch_version() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.__version__


if __name__ == "__main__":
    command.run(main)
