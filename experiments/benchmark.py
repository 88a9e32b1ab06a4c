"""Measures speed on whatever hardware there is, side by side with PyTorch.

python -m experiments.benchmark --output=experiments/results/benchmark/NAME

For each normalization: images/s of the bare training step (ten batches a dispatch, as a run
does, the windows on the device already) and of the same network in PyTorch, taking turns
within one process; with `--plain` also of XLA's own convolution gradients. On a GPU PyTorch is
compiled, and once more is a CUDA graph: what counts is the faster. Then a whole run and its parts
beside its bare steps (`--epochs`), and how soon the demo starts (`--starts`). PyTorch is
optional: pip install -e '.[benchmark]'.
"""

import json
import os
import resource
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from bn_vgg import cli, provenance
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import UserError
from bn_vgg.models import DTYPES, PRECISIONS
from bn_vgg.parallel import check_precision
from configs import default, meanonly_crop
from experiments.timing import run_timing, speed_page, step_timing

_OUTPUT = flags.DEFINE_string("output", None, "Folder for benchmark.json and .md.", required=True)
_NORMS = flags.DEFINE_list("norms", ["none", "mean_only", "full"], "Normalizations to time.")
_SIZES = flags.DEFINE_list("sizes", ["128", "48"], "Sides of the windows, in pixels.")
_DROPOUTS = flags.DEFINE_list("dropouts", ["0"], "Dropout rates.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the computation.")
_PRECISION = flags.DEFINE_enum("precision", "highest", list(PRECISIONS), "Of float32 products.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each takes.", lower_bound=1)
_PLAIN = flags.DEFINE_bool("plain", False, "Also time XLA's own convolution gradients.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Of a whole run; 0 for none.", lower_bound=0)
_VARIANT = flags.DEFINE_string("variant", "small", "Of that run's configuration.")
_SOURCE = flags.DEFINE_string("source", "cartoons:25000", "Of that run's images.")
_STARTS = flags.DEFINE_integer("starts", 0, "Warm starts of the demo to time.", lower_bound=0)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")


def main() -> None:
    """Runs the command."""
    if _EPOCHS.value == 1:
        raise UserError("--epochs=1: the first epoch compiles, and does not count; 2 at least")
    # Otherwise JAX takes most of a GPU's memory, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    check_precision(_PRECISION.value, jax.default_backend())
    output = Path(_OUTPUT.value)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    folder = choose_folder(_CACHE_DIR.value)
    cli.show("measuring a large matrix product and a large copy ...")
    about: dict[str, Any] = {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions() | {"torch": _torch_version()},
        "dtype": _DTYPE.value,
        "precision": _PRECISION.value,
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
        cli.show("\n".join(speed_page.part_markdown(part)))
        (output / "benchmark.json").write_text(json.dumps(about, indent=1) + "\n")
        (output / "benchmark.md").write_text(speed_page.markdown(about))
    cli.show(f"{output}/benchmark.md")


def _parts(ceilings: dict[str, float], cache_folder: Path):
    if _STARTS.value:
        arguments = ["--config=configs/meanonly_crop.py:demo"]
        cli.show(f"starting the demo {_STARTS.value + 1} times ...")
        yield {"start": run_timing.measure_start(arguments, cache_folder, _STARTS.value)}
    if _EPOCHS.value:
        config = meanonly_crop.get_config(_VARIANT.value)
        config.data.source = _SOURCE.value
        _set_numbers(config)
        config.num_epochs = _EPOCHS.value
        cli.show(f"a run of {_EPOCHS.value} epochs, and its bare steps ...")
        yield {"training": run_timing.measure_training(config, cache_folder)}
    for size in _SIZES.value:
        for dropout in _DROPOUTS.value:
            config = default.get_config()
            config.data.crop_size = int(size)
            config.model.dropout_rate = float(dropout)
            # One pass, as in PyTorch; the recipe's takes its statistics from a second one.
            config.model.stats_pass = "dropout"
            _set_numbers(config)
            rows = step_timing.measure(
                config, _NORMS.value, rounds=_ROUNDS.value, plain=_PLAIN.value, ceilings=ceilings
            )
            yield {"rows": rows}


def _set_numbers(config: ConfigDict) -> None:
    config.model.update(dtype=_DTYPE.value, precision=_PRECISION.value)


def _peak_memory() -> int:
    """Bytes: of the device, where it counts them, otherwise of this process."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def _torch_version() -> str | None:
    return step_timing.torch_vgg.torch.__version__ if step_timing.torch_vgg else None


if __name__ == "__main__":
    cli.run(main)
