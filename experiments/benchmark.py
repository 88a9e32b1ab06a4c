"""Measures speed on whatever hardware there is, side by side with PyTorch.

python -m experiments.benchmark --output=experiments/results/benchmark/NAME

For each normalization: images/s of the bare training step (ten batches a dispatch, as a run
does, the windows on the device already) and of the same network in PyTorch, taking turns
within one process; with `--plain` also of XLA's own convolution gradients. Then a whole run
on cartoons beside its bare steps (`--epochs`), and how soon the demo starts (`--starts`).
PyTorch is optional: pip install -e '.[benchmark]'.
"""

import json
import resource
from pathlib import Path
from typing import Any

import jax
from absl import flags

from bn_vgg import command
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import UserError
from bn_vgg.infra import provenance
from bn_vgg.model.vgg import DTYPES
from configs import default, meanonly_crop
from experiments.timing import run_timing, step_timing

_OUTPUT = flags.DEFINE_string("output", None, "Folder for benchmark.json and .md.", required=True)
_NORMS = flags.DEFINE_list("norms", ["none", "mean_only", "full"], "Normalizations to time.")
_SIZES = flags.DEFINE_list("sizes", ["128", "48"], "Sides of the windows, in pixels.")
_DROPOUTS = flags.DEFINE_list("dropouts", ["0"], "Dropout rates.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the computation.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each takes.", lower_bound=1)
_PLAIN = flags.DEFINE_bool("plain", False, "Also time XLA's own convolution gradients.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Epochs of a whole run that count.", lower_bound=0)
_VARIANT = flags.DEFINE_string("variant", "small", "Of that run's configuration.")
_STARTS = flags.DEFINE_integer("starts", 0, "Warm starts of the demo to time.", lower_bound=0)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")


def main() -> None:
    """Runs the command."""
    output = Path(_OUTPUT.value)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    folder = choose_folder(_CACHE_DIR.value)
    about: dict[str, Any] = {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions() | {"torch": _torch_version()},
        "dtype": _DTYPE.value,
        "ceilings": step_timing.measure_ceilings(_DTYPE.value),
        "rows": [],
    }
    # What is measured is written as it comes: a later part may fail.
    for part in _parts(about["ceilings"], folder):
        if "rows" in part:
            about["rows"] += part["rows"]
        else:
            about |= part
        about["peak_memory_gib"] = _peak_memory() / 2**30
        print(json.dumps(part), flush=True)
        (output / "benchmark.json").write_text(json.dumps(about, indent=1) + "\n")
        (output / "benchmark.md").write_text(markdown(about))
    print(f"{output}/benchmark.md")


def _parts(ceilings: dict[str, float], cache_folder: Path):
    if _STARTS.value:
        arguments = ["--config=configs/meanonly_crop.py:demo"]
        yield {"start": run_timing.measure_start(arguments, cache_folder, _STARTS.value)}
    if _EPOCHS.value:
        config = meanonly_crop.get_config(_VARIANT.value)
        config.data.source = "cartoons:25000"
        config.model.dtype = _DTYPE.value
        yield {"training": run_timing.measure_training(config, cache_folder, _EPOCHS.value)}
    for size in _SIZES.value:
        for dropout in _DROPOUTS.value:
            config = default.get_config()
            config.data.crop_size = int(size)
            config.model.dropout_rate = float(dropout)
            # One pass, as in PyTorch; the recipe's takes its statistics from a second one.
            config.model.stats_pass = "dropout"
            config.model.dtype = _DTYPE.value
            rows = step_timing.measure(
                config, _NORMS.value, rounds=_ROUNDS.value, plain=_PLAIN.value, ceilings=ceilings
            )
            yield {"rows": rows}


def markdown(about: dict[str, Any]) -> str:
    """Makes the tables, with where they come from."""
    hardware, versions = about["hardware"], about["versions"]
    lines = [
        f"`{about['command']}`, commit {about['commit']}",
        "",
        f"{hardware['num_devices']} {hardware['device']} ({hardware['cpu_cores']} cores), "
        f"{about['dtype']}, batch 100; jax {versions['jax']}, torch {versions['torch']}; "
        f"peak memory of the process {about['peak_memory_gib']:.1f} GiB. Floors are a matrix "
        f"product's {about['ceilings']['flops_per_second'] / 1e9:.0f} GFLOP/s and a copy's "
        f"{about['ceilings']['bytes_per_second'] / 1e9:.0f} GB/s on the same device.",
    ]
    if about["rows"]:
        lines += ["", *_step_table(about["rows"])]
    if "training" in about:
        whole = about["training"]
        lines += [
            "",
            f"An epoch of {whole['train_images']} images, {whole['config']} on cartoons: "
            f"{whole['training_images_per_second']:.0f} images/s in training, "
            f"{whole['share_of_bare_in_training']:.1%} of the bare step's "
            f"{whole['bare_images_per_second']:.0f}. With evaluation, checkpoint and records "
            f"{whole['epoch_seconds']:.1f} s, of which its bare training and evaluation steps "
            f"are {whole['share_of_bare_in_epoch']:.1%}, its bare training steps alone "
            f"{whole['training_share_of_epoch']:.1%}, and precise statistics with what is "
            f"compared to them {whole['lens_share_of_epoch']:.1%}.",
        ]
    if "start" in about:
        start = about["start"]
        lines += [
            "",
            f"From the start of the process to ten finished steps, "
            f"`{' '.join(start['arguments'])}`: {start['cold_seconds']:.1f} s with nothing "
            f"compiled, {start['warm_seconds']:.1f} s with compiled programs at hand.",
        ]
    return "\n".join(lines) + "\n"


def _step_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Images/s: medians (least to most). Ratios are medians over neighbouring turns.",
        "",
        "| size | norm | dropout | this code | PyTorch | times PyTorch | XLA's own gradients | "
        "times those | of none's time | of the arithmetic floor | of the bandwidth floor | "
        "compiling |",
        f"|{' --- |' * 12}",
    ]
    for row in rows:
        cells = [str(row["size"]), row["norm"], f"{row['dropout']:g}", _rate(row, "jax")]
        for other in ("torch", "plain"):
            measured = f"times_{other}" in row
            cells.append(_rate(row, other) if measured else "not measured")
            cells.append(f"**{row[f'times_{other}']:.2f}**" if measured else "")
        cells.append(f"{row['seconds_of_none']:.2f}" if "seconds_of_none" in row else "")
        cells.append(f"{row['share_of_arithmetic_floor']:.0%}")
        cells.append(f"{row['share_of_bandwidth_floor']:.0%}")
        cells.append(f"{row['jax_compile_seconds']:.1f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rate(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_spread"]
    return f"{row[f'{name}_images_per_second']:.0f} ({low:.0f} to {high:.0f})"


def _peak_memory() -> int:
    """Bytes: of the device, where it counts them, otherwise of this process."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def _torch_version() -> str | None:
    return step_timing.torch_vgg.torch.__version__ if step_timing.torch_vgg else None


if __name__ == "__main__":
    command.run(main)
