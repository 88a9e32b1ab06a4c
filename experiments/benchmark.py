"""Measures speed on whatever hardware there is, side by side with PyTorch.

python -m experiments.benchmark --output=experiments/results/benchmark/NAME

For each normalization: images/s of the bare training step (a chunk of ten, as in a run, its data
on the device already) and of the same network in PyTorch, taking turns within one process; with
`--plain` also of XLA's own convolution gradients. On a GPU PyTorch is compiled, and once more is
a CUDA graph: the faster counts. Then whole runs beside their bare steps (`--epochs`), and how
soon the demo starts (`--starts`). PyTorch is optional: pip install -e '.[benchmark]'.
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from bn_vgg import cli, config_file, provenance
from bn_vgg.data.cache import choose_folder
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from bn_vgg.models import DTYPES, PRECISIONS
from bn_vgg.run_dir import Workdir
from configs import default
from experiments import step_times

_OUTPUT = flags.DEFINE_string("output", None, "Folder for benchmark.json and .md.", required=True)
_NORMS = flags.DEFINE_list("norms", ["none", "mean_only", "full"], "Normalizations to time.")
_SIZES = flags.DEFINE_list("sizes", ["128", "48"], "Sides of the images, in pixels.")
_DROPOUTS = flags.DEFINE_list("dropouts", ["0"], "Dropout rates.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the computation.")
_PRECISION = flags.DEFINE_enum("precision", "highest", list(PRECISIONS), "Of float32 products.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each takes.", lower_bound=1)
_PLAIN = flags.DEFINE_bool("plain", False, "Also time XLA's own convolution gradients.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Of a whole run; 0 for none.", lower_bound=0)
_VARIANT = flags.DEFINE_string("variant", "small", "Size of that run.")
_SOURCE = flags.DEFINE_string("source", "cartoons:25000", "Of that run's images.")
_STARTS = flags.DEFINE_integer("starts", 0, "Warm starts of the demo to time.", lower_bound=0)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")

_ROOT = Path(__file__).resolve().parents[1]
_FIRST_STEPS = "steps are done"  # in log.txt


def main() -> None:
    """Runs the command."""
    if _EPOCHS.value == 1:
        raise UserError("--epochs=1: the first epoch compiles, and does not count; 2 at least")
    # Otherwise JAX takes most of a GPU's memory, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    Devices().check(default.get_config().batch_size, _PRECISION.value)
    output = Path(_OUTPUT.value)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    torch = step_times.torch_vgg.torch.__version__ if step_times.torch_vgg else None
    cli.show("measuring a large matrix product and a large copy ...")
    about: dict[str, Any] = {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions() | {"torch": torch},
        "dtype": _DTYPE.value,
        "precision": _PRECISION.value,
        "ceilings": step_times.measure_ceilings(_DTYPE.value),
        "rows": [],
    }
    # What is measured is written as it comes: a later part may fail.
    for part in _parts(about["ceilings"], choose_folder(_CACHE_DIR.value)):
        about |= {"rows": about["rows"] + part["rows"]} if "rows" in part else part
        about["peak_memory_gib"] = _peak_memory() / 2**30
        cli.show("\n".join(part_markdown(part)))
        (output / "benchmark.json").write_text(json.dumps(about, indent=1) + "\n")
        (output / "benchmark.md").write_text(markdown(about))
    cli.show(f"{output}/benchmark.md")


def _parts(ceilings: dict[str, float], cache_folder: Path) -> Iterator[dict[str, Any]]:
    numbers = {"dtype": _DTYPE.value, "precision": _PRECISION.value}
    if _STARTS.value:
        cli.show(f"starting the demo {_STARTS.value + 1} times ...")
        arguments = ["--config=configs/meanonly_crop.py:demo"]
        yield {"start": measure_start(arguments, cache_folder, _STARTS.value)}
    if _EPOCHS.value:
        cli.show(f"two runs of {_EPOCHS.value} epochs, and their bare steps ...")
        arguments = [
            f"--config=configs/meanonly_crop.py:{_VARIANT.value}",
            f"--config.data.source={_SOURCE.value}", f"--config.num_epochs={_EPOCHS.value}",
            *(f"--config.model.{name}={value}" for name, value in numbers.items()),
        ]  # fmt: skip
        yield {"training": measure_training(arguments, cache_folder)}
    for size in _SIZES.value:
        for dropout in _DROPOUTS.value:
            config: ConfigDict = default.get_config()
            config.data.crop_size = int(size)
            config.model.dropout_rate = float(dropout)
            # One pass, as in PyTorch; the recipe's takes its statistics from a second one.
            config.model.stats_pass = "dropout"
            config.model.update(numbers)
            rows = step_times.measure(
                config, _NORMS.value, rounds=_ROUNDS.value, plain=_PLAIN.value, ceilings=ceilings
            )
            yield {"rows": rows}


def _peak_memory() -> int:
    """Bytes: of the device, where it counts them, otherwise of this process."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def measure_training(arguments: list[str], cache_folder: Path) -> dict[str, Any]:
    """Times a run, one without precise statistics, and the bare training step between them.

    The first epoch compiles: numbers are medians of the others. An epoch is its training, its
    five-crop evaluation, precise statistics, its checkpoint and its records.
    """
    config = config_file.load_config(arguments)
    with tempfile.TemporaryDirectory() as folder:
        whole = _run(arguments, cache_folder, Path(folder) / "whole")
        bare = step_times.Timed(
            step_times.chunk_of_steps(config, *step_times.random_batch(config)), step_times.STEPS
        )
        step_times.take_turns([bare], 5)
        arguments = [*arguments, "--config.eval.precise_examples=0"]
        without = _run(arguments, cache_folder, Path(folder) / "without")
    step = statistics.median(bare.seconds)
    steps = whole["examples"]["train"] // config.batch_size
    epoch, rate = whole["epoch_seconds"], whole["images_per_second"]
    return {
        "config": config.name,
        "source": config.data.source,
        "epochs": config.num_epochs,
        "train_images": steps * config.batch_size,
        "valid_images": whole["examples"]["valid"],
        "bare_images_per_second": config.batch_size / step,
        "epoch_seconds": epoch,
        "training_images_per_second": rate,
        "share_of_bare_in_training": rate * step / config.batch_size,
        "training_share_of_epoch": steps * step / epoch,
        "lens_share_of_epoch": 1 - without["epoch_seconds"] / epoch,
        "seconds": {"in all": whole["seconds"]},
    }


def _run(arguments: list[str], cache_folder: Path, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    with _start(arguments, cache_folder, folder, {}) as process:
        errors = process.communicate()[1].decode().strip()
    if process.returncode:
        raise UserError(f"the run failed: {errors}")
    seconds = time.monotonic() - started
    workdir = Workdir(str(folder), writes=False)
    lines = workdir.read_metrics()
    epochs = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(lines)]
    rates = [line["train/images_per_second"] for line in lines[1:]]
    return {
        "seconds": seconds, "examples": workdir.read("data.json")["examples"],
        "epoch_seconds": statistics.median(epochs), "images_per_second": statistics.median(rates),
    }  # fmt: skip


def measure_start(arguments: list[str], cache_folder: Path, warm_starts: int) -> dict[str, Any]:
    """Times the command from its start to its first finished steps, in new processes.

    Cold: nothing compiled is kept, but the images are decoded. Warm: compiled programs are.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        for number in range(warm_starts + 1):
            workdir = Path(folder) / f"run{number}"
            log, started = workdir / "log.txt", time.monotonic()
            with _start(arguments, cache_folder, workdir, environment) as process:
                while not (log.exists() and _FIRST_STEPS in log.read_text()):
                    if process.poll() is not None:
                        raise UserError(f"it failed: {process.stderr.read().decode().strip()}")
                    time.sleep(0.01)
                seconds.append(time.monotonic() - started)
                process.kill()
    return {
        "arguments": arguments,
        "cold_seconds": seconds[0],
        "warm_seconds": statistics.median(seconds[1:]),
        "warm_spread": [min(seconds[1:]), max(seconds[1:])],
    }


def _start(
    arguments: list[str], cache_folder: Path, folder: Path, environment: dict[str, str]
) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", "bn_vgg.main", *arguments, f"--workdir={folder}",
         f"--cache_dir={cache_folder}"],
        cwd=_ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def markdown(about: dict[str, Any]) -> str:
    """Makes the page of a record."""
    hardware, versions, ceilings = about["hardware"], about["versions"], about["ceilings"]
    lines = [
        f"`{about['command']}`, commit {about['commit']}",
        "",
        f"{hardware['num_devices']} {hardware['device']} ({hardware['cpu_cores']} cores), "
        f"{about['dtype']}, precision {about['precision']}, batch 100; jax {versions['jax']}, "
        f"torch {versions['torch']}; peak memory {about['peak_memory_gib']:.1f} GiB. Floors are a "
        f"matrix product's {ceilings['flops_per_second'] / 1e9:.0f} GFLOP/s and a copy's "
        f"{ceilings['bytes_per_second'] / 1e9:.0f} GB/s on the same device.",
    ]
    for name in ("rows", "training", "start"):
        if about.get(name):
            lines += ["", *part_markdown({name: about[name]})]
    return "\n".join(lines) + "\n"


def part_markdown(part: dict[str, Any]) -> list[str]:
    """Describes one of the things that are measured: `rows`, `training` or `start`."""
    if "rows" in part:
        return _step_table(part["rows"])
    if "start" in part:
        start = part["start"]
        return [
            f"From the start of the process to ten finished steps, "
            f"`{' '.join(start['arguments'])}`: {start['cold_seconds']:.1f} s with nothing "
            f"compiled, {start['warm_seconds']:.1f} s with compiled programs at hand."
        ]
    run = part["training"]
    return [
        f"A run of {run['epochs']} epochs of {run['train_images']} images, {run['config']} on "
        f"{run['source']}: {run['seconds']['in all']:.1f} s.",
        "",
        f"An epoch: {run['training_images_per_second']:.0f} images/s in training, "
        f"{run['share_of_bare_in_training']:.1%} of the bare step's "
        f"{run['bare_images_per_second']:.0f}. With evaluation, checkpoint and records "
        f"{run['epoch_seconds']:.1f} s, of which bare training steps are "
        f"{run['training_share_of_epoch']:.1%}, and precise statistics with what is compared to "
        f"them {run['lens_share_of_epoch']:.1%}.",
    ]


def _step_table(rows: list[dict[str, Any]]) -> list[str]:
    head = (
        "size", "norm", "dropout", "this code", "PyTorch", "times PyTorch", "XLA's own gradients",
        "times those", "of none's time", "of the arithmetic floor", "of the bandwidth floor",
        "compiling",
    )  # fmt: skip
    table = [head, ("---",) * len(head)]
    for row in rows:
        cells = [str(row["size"]), row["norm"], f"{row['dropout']:g}", _rate(row, "jax")]
        for other, name in (("torch", row.get("fastest_torch", "torch")), ("plain", "plain")):
            ratio = row.get(f"times_{other}")
            cells += [_rate(row, name), f"**{ratio:.2f}**"] if ratio else ["not measured", ""]
        cells.append(f"{row['seconds_of_none']:.2f}" if "seconds_of_none" in row else "")
        cells += [f"{row[f'share_of_{kind}_floor']:.0%}" for kind in ("arithmetic", "bandwidth")]
        table.append((*cells, f"{row['jax_compile_seconds']:.1f} s"))
    title = "Images/s: medians (least to most). Ratios are medians over neighbouring turns."
    return [title, "", *(f"| {' | '.join(cells)} |" for cells in table)]


def _rate(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_spread"]
    return f"{row[f'{name}_images_per_second']:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    cli.run(main)
