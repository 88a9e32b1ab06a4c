"""Times training steps beside PyTorch's, and counts what a step has to do at least."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bn_vgg import cli
from bn_vgg.devices import Devices
from bn_vgg.models import DTYPES, layers
from bn_vgg.models.convolution import cpu_compiler_options, plain_conv
from bn_vgg.models.layers import PADDINGS
from bn_vgg.programs import make_programs
from bn_vgg.steps import make_train_step, to_intensities

try:
    from experiments import torch_vgg
except ImportError:  # PyTorch is optional
    torch_vgg = None  # type: ignore[assignment]

# Steps that are timed together: a chunk of an accelerator's.
STEPS = 10


class Timed:
    """A function that is timed again and again.

    Attributes:
      compile_seconds: what the first call took longer than the second.
      seconds: of a step, one for each turn; a turn takes a second or more.
    """

    def __init__(self, function: Callable[[], Any], steps: int):
        self._function, self._steps = function, steps
        first, second = self._time(1), self._time(1)
        self.compile_seconds = max(0.0, first - second)
        self._repeats = max(1, round(1 / second))
        self.seconds: list[float] = []

    def _time(self, repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            self._function()
        return (time.perf_counter() - started) / repeats

    def take_a_turn(self) -> None:
        """Times it once more."""
        self.seconds.append(self._time(self._repeats) / self._steps)


def take_turns(contenders: Iterable[Timed], rounds: int) -> None:
    """Times each once a round, so that what else the machine does is shared fairly."""
    contenders = list(contenders)
    for _ in range(rounds):
        for contender in contenders:
            contender.take_a_turn()


def random_batch(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Draws images (N, H, W, 3), uint8, and labels (N,), int32, of a batch of `config`."""
    side, count = config.data.crop_size, config.batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return images, rng.integers(0, 2, count, np.int32)


def chunk_of_steps(config: ConfigDict, images: np.ndarray, labels: np.ndarray):
    """Returns a function that does `STEPS` updates as a run does, with its data on the device."""
    programs, state, batch = _start(config, images, labels)
    devices = programs.devices
    batches = devices.shard({key: np.stack([array] * STEPS) for key, array in batch.items()})
    state, key = devices.replicate((state, jax.random.key(1)))
    metrics = programs.empty_training

    def steps() -> None:
        nonlocal state, metrics
        state, metrics = programs.train_chunk((state, metrics), key, batches, None)
        jax.block_until_ready(state)

    return steps


def plain_step(config: ConfigDict, images: np.ndarray, labels: np.ndarray):
    """Returns a function that does one update with XLA's own convolution gradients.

    It is no chunk, because in a loop XLA would not divide these among the cores.
    """
    with mock.patch.object(layers, "conv3x3", plain_conv):
        programs, state, batch = _start(config, images, labels)
        update = jax.jit(make_train_step(programs.model, programs.optimizer), donate_argnums=0)
        state, batch, key = programs.devices.replicate((state, batch, jax.random.key(1)))
        state, _ = jax.block_until_ready(update(state, batch, key))

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(update(state, batch, key))

    return step


def _start(config: ConfigDict, images: np.ndarray, labels: np.ndarray):
    """Returns the programs, a first state and a batch."""
    programs = make_programs(config.to_dict(), Devices(), 200)
    state = programs.init(jax.random.key(0), to_intensities(images[:1]))
    positions = np.arange(len(labels), dtype=np.int32)
    return programs, state, {"crops": images[:, None], "label": labels, "position": positions}


def measure(
    config: ConfigDict, norms: list[str], *, rounds: int, plain: bool, ceilings: dict[str, float]
) -> list[dict[str, Any]]:
    """Times the networks of `config` with each normalization, all taking turns.

    Returns:
      A row for each normalization: medians of images/s with the least and the most, and
      ratios of neighbouring turns, that to PyTorch against the faster of its forms.
    """
    contenders = {}
    for norm in norms:
        config.model.norm = norm
        side = config.data.crop_size
        cli.show(f"compiling {norm}, {side}x{side}, dropout {config.model.dropout_rate:g} ...")
        contenders[norm] = _contenders(config, plain)
    cli.show(f"timing {rounds} turns of each ...")
    take_turns((each for of_norm in contenders.values() for each in of_norm.values()), rounds)
    rows = []
    for norm, timed in contenders.items():
        config.model.norm = norm
        row: dict[str, Any] = {
            "size": config.data.crop_size, "norm": norm, "dropout": config.model.dropout_rate,
            "dtype": config.model.dtype, "precision": config.model.precision,
        }  # fmt: skip
        for name, contender in timed.items():
            rates = [config.batch_size / seconds for seconds in contender.seconds]
            row[f"{name}_images_per_second"] = statistics.median(rates)
            row[f"{name}_spread"] = [min(rates), max(rates)]
            row[f"{name}_compile_seconds"] = contender.compile_seconds
        ours = timed["jax"]
        if "none" in contenders:
            row["seconds_of_none"] = _ratio(ours, contenders["none"]["jax"])
        if "plain" in timed:
            row["times_plain"] = _ratio(timed["plain"], ours)
        if forms := [name for name in timed if name.startswith("torch")]:
            fastest = min(forms, key=lambda name: statistics.median(timed[name].seconds))
            row |= {"fastest_torch": fastest, "times_torch": _ratio(timed[fastest], ours)}
        seconds = statistics.median(ours.seconds)
        flops, moved = step_flops(config), step_bytes(config)
        row["share_of_arithmetic_floor"] = flops / ceilings["flops_per_second"] / seconds
        row["share_of_bandwidth_floor"] = moved / ceilings["bytes_per_second"] / seconds
        rows.append(row)
    return rows


def _contenders(config: ConfigDict, plain: bool) -> dict[str, Timed]:
    images, labels = random_batch(config)
    timed = {"jax": Timed(chunk_of_steps(config, images, labels), STEPS)}
    if plain:
        timed["plain"] = Timed(plain_step(config, images, labels), 1)
    if torch_vgg is not None and config.model.norm in torch_vgg.NORMS:
        count = STEPS if jax.default_backend() == "gpu" else 1
        steps = torch_vgg.make_steps(
            config.model.to_dict(), config.optimizer.to_dict(), images, labels, count
        )
        timed |= {name: Timed(function, count) for name, function in steps.items()}
    return timed


def _ratio(numerator: Timed, denominator: Timed) -> float:
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    return statistics.median(above / below for above, below in pairs)


def _layers(config: ConfigDict):
    """Yields (inputs, outputs) of each convolution: side and channels."""
    channels, side = 3, config.data.crop_size
    for i, features in enumerate(config.model.features):
        grown = side + 2 * PADDINGS[config.model.padding] - 2
        yield (side, channels), (grown, features)
        channels, side = features, grown // 2 if i % 2 == 1 else grown


def _dense_weights(config: ConfigDict) -> int:
    *_, (_, (side, channels)) = _layers(config)
    return config.model.hidden_units * (channels * (side // 2) ** 2 + config.model.num_classes)


def step_flops(config: ConfigDict) -> float:
    """Counts a training step's multiplications and additions in its matrix products.

    Forward once, and twice backward: for the inputs, but the images, and for the weights.
    """
    total = 3.0 * 2 * _dense_weights(config)
    for i, ((_, inputs), (side, outputs)) in enumerate(_layers(config)):
        total += (2 if i == 0 else 3) * 2 * 9 * inputs * outputs * side**2
    return config.batch_size * total


def step_bytes(config: ConfigDict) -> float:
    """Counts the bytes that a training step has to move if only one layer fits in caches.

    Each convolution reads its input and writes its output; backward it reads the output's
    gradient and its input and writes the input's gradient. The optimizer reads and writes
    float32 weights and mean squares, and reads the gradient, once.
    """
    itemsize = jnp.dtype(DTYPES[config.model.dtype]).itemsize
    moved = 0.0
    for i, ((side_in, inputs), (side_out, outputs)) in enumerate(_layers(config)):
        moved += (2 if i == 0 else 3) * inputs * side_in**2 + 2 * outputs * side_out**2
    pairs = itertools.pairwise([3, *config.model.features])
    weights = sum(9 * a * b for a, b in pairs) + _dense_weights(config)
    return config.batch_size * moved * itemsize + 5 * 4 * weights


def measure_ceilings(dtype: str) -> dict[str, float]:
    """Measures a large matrix product (FLOP/s) and a large copy (bytes/s) on one device."""
    on_cpu = jax.default_backend() == "cpu"
    side = 2048 if on_cpu else 8192
    square = jax.random.normal(jax.random.key(0), (side, side), DTYPES[dtype])
    product = jax.jit(lambda x: x @ x)
    # In place, so that no memory is asked of the system: reads and writes alone.
    options = cpu_compiler_options() if on_cpu else None
    change = jax.jit(lambda x: x + 1, donate_argnums=0, compiler_options=options)
    flat = change(jnp.zeros(2**26, jnp.float32))
    jax.block_until_ready((product(square), flat))
    of_product, of_copy = [], []
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(product(square))
        of_product.append(time.perf_counter() - started)
        started = time.perf_counter()
        flat = jax.block_until_ready(change(flat))
        of_copy.append(time.perf_counter() - started)
    return {
        "flops_per_second": 2 * side**3 / min(of_product),
        "bytes_per_second": 2 * flat.nbytes / min(of_copy),
    }
