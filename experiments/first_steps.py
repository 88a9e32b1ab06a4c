"""The first steps of runs: which seeds take off, and how many hidden units die."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from bn_vgg.data.crops import crops_of
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from bn_vgg.launch import load_data
from bn_vgg.loop import dropout_key, init_key
from bn_vgg.models.layers import layer_activations
from bn_vgg.programs import make_programs
from bn_vgg.steps import to_intensities
from experiments.stats import TAKEN_OFF

CELLS = {"none": "baseline_crop", "mean_only": "meanonly_crop", "full": "full_crop"}
# A run has taken off if its mean training error over this many last steps is below `TAKEN_OFF`.
_LAST = 20
# The hidden layer is looked at after this many steps; the figure shows means over as many.
CHUNK = 10

Record = dict[str, Any]


def make_runner(config: ConfigDict, cache_folder: Path, steps: int) -> Callable[[int], Record]:
    """Returns a function of the seed that takes the first `steps` updates of a run.

    It returns `seed`, `loss` and `error_rate` (of each step's batch, before its update) and
    `dead_units`: the share of hidden units that are 0 for all examples of the 11th batch after
    ten updates.
    """
    devices = Devices()
    programs = make_programs(config.to_dict(), devices, steps)
    model = programs.model

    def dead_units(state, batches, pixels):
        batch = jax.tree.map(lambda x: x[0], batches)
        crops = crops_of(batch, pixels, programs.crop_size)
        _, updated = model.clone(dropout_rate=0.0).apply(
            state.variables, to_intensities(crops[:, 0]), train=True,
            mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        highest = layer_activations(updated, "output")["hidden"].max(axis=0)
        if devices.axis_name is not None:
            highest = lax.pmax(highest, devices.axis_name)
        return jnp.mean(highest <= 0)

    dead_units = devices.compile(dead_units)
    side = config.data.crop_size
    data, _ = load_data(config, cache_folder, devices)
    if data.steps_per_epoch < steps:
        raise UserError(f"--steps={steps}: an epoch has {data.steps_per_epoch} steps")

    def run(seed: int) -> Record:
        data.seed = seed
        state = devices.replicate(programs.init(init_key(seed), jnp.zeros((1, side, side, 3))))
        rng = devices.replicate(dropout_key(seed, epoch=0))
        losses: list[float] = []
        error_rates: list[float] = []
        dead = 0.0
        single = (chunk.step(i, devices) for chunk in data.train(0) for i in range(chunk.num_steps))
        for number, one in enumerate(itertools.islice(single, steps)):
            if number == CHUNK:
                dead = devices.fetch(dead_units(state, one.batches, one.pixels)).item()
            state, metrics = programs.train_chunk(
                (state, programs.empty_training), rng, one.batches, one.pixels
            )
            means = devices.fetch(metrics).compute()
            losses.append(means["loss"].item())
            error_rates.append(means["error_rate"].item())
        return {"seed": seed, "loss": losses, "error_rate": error_rates, "dead_units": dead}

    return run


def of_setting(records: list[Record], norm: str, bias_correction: bool) -> list[Record]:
    """Picks the runs of a normalizer and an optimizer, in the order of their seeds."""
    found = [r for r in records if (r["norm"], r["bias_correction"]) == (norm, bias_correction)]
    return sorted(found, key=lambda each: each["seed"])


def grouped(records: list[Record]) -> dict[str, list[Record]]:
    """Groups runs by normalizer and optimizer, each in the order of its seeds."""
    found = {}
    for norm in CELLS:
        for bias_correction in (False, True):
            name = f"{norm}, {'bias correction' if bias_correction else 'the recipe'}"
            if runs := of_setting(records, norm, bias_correction):
                found[name] = runs
    return found


def last_error(record: Record) -> float:
    """The mean training error of a run's last 20 steps."""
    return float(np.mean(record["error_rate"][-_LAST:]))


def line(record: Record) -> str:
    """Describes a run in a line."""
    how = "bias correction" if record["bias_correction"] else "the recipe"
    return (
        f"{record['norm']}, {how}, seed {record['seed']}: training error of the last {_LAST} "
        f"steps {last_error(record):.1%}; dead hidden units after {CHUNK} steps "
        f"{record['dead_units']:.0%}"
    )


def page(records: list[Record]) -> str:
    """Describes all runs in Markdown."""
    steps, variant = len(records[0]["loss"]), records[0]["variant"]
    lines = [
        "# The first steps", "",
        f"Which seeds take off within {steps} steps (`{variant}` size, random cropping)? A run "
        f"has taken off if its mean training error over the last {_LAST} steps is below "
        f"{TAKEN_OFF:.0%}. *Dead units*: the share of hidden units that are 0 for all examples of "
        f"a batch after {CHUNK} steps.", "",
        "| | taken off | error by seed | dead units: mean | least to most |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, runs in grouped(records).items():
        errors, dead = [last_error(each) for each in runs], [each["dead_units"] for each in runs]
        by_seed = ", ".join(f"{error:.0%}" for error in errors)
        lines.append(
            f"| {name} | {sum(e < TAKEN_OFF for e in errors)} of {len(runs)} | {by_seed} "
            f"| {np.mean(dead):.0%} | {min(dead):.0%} to {max(dead):.0%} |"
        )
    made = dict.fromkeys(
        f"- `{each['command']}`, commit {each['commit'] or 'not known'}, "
        f"{each['hardware']['device']}" for each in records
    )  # fmt: skip
    return "\n".join([*lines, "", "![Training error of each seed](start.png)", "", *made]) + "\n"
