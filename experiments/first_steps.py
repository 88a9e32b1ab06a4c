"""The first steps of runs: which seeds take off, and how many hidden units die."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from bn_vgg import train
from bn_vgg.data import batches
from bn_vgg.errors import UserError
from bn_vgg.feed import with_windows
from bn_vgg.launch import prepare_data
from bn_vgg.models.vgg import layer_activations, make_model
from bn_vgg.optimizer import rmsprop
from bn_vgg.parallel import Devices
from bn_vgg.run_data import RunData
from bn_vgg.state import init_state
from bn_vgg.steps import make_train_step, to_intensities
from experiments.stats import TAKEN_OFF

CELLS = {"none": "baseline_crop", "mean_only": "meanonly_crop", "full": "full_crop"}
# A run has taken off if its mean training error over so many last steps is below `TAKEN_OFF`.
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
    model = make_model(**config.model, axis_name=devices.axis_name)
    optimizer = rmsprop(**config.optimizer)
    crop_size = config.data.crop_size
    data = RunData(
        prepare_data(config, cache_folder), devices, seed=0, batch_size=config.batch_size,
        eval_batch_size=config.eval.batch_size, crop_size=crop_size,
        placement=config.data.placement,
    )  # fmt: skip
    if data.steps_per_epoch < steps:
        raise UserError(f"--steps={steps}: an epoch has {data.steps_per_epoch} steps")
    train_step = make_train_step(model, optimizer, devices.axis_name)

    def take_steps(state, rng, stacked, pixels):
        def step(state, batch):
            state, metrics = train_step(state, with_windows(batch, pixels, crop_size), rng)
            computed = metrics.compute()
            return state, (computed["loss"], computed["error_rate"])

        return lax.scan(step, state, stacked)

    def dead_units(state, stacked, pixels):
        batch = with_windows(jax.tree.map(lambda x: x[0], stacked), pixels, crop_size)
        _, updated = model.clone(dropout_rate=0.0).apply(
            state.variables, to_intensities(batch["windows_NWHWC"][:, 0]), train=True,
            mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        highest = layer_activations(updated, "output")["hidden"].max(axis=0)
        if devices.axis_name is not None:
            highest = lax.pmax(highest, devices.axis_name)
        return jnp.mean(highest <= 0)

    take_steps = devices.compile(take_steps, donated=(0,))
    dead_units = devices.compile(dead_units)
    init = jax.jit(
        lambda key: init_state(model, optimizer, key, jnp.zeros((1, crop_size, crop_size, 3)))
    )

    def run(seed: int) -> Record:
        key = jax.random.key(seed)
        state = devices.replicate(init(train.init_key(key)))
        rng = devices.replicate(train.dropout_key(key, epoch=0))
        epoch = batches.train_batches(
            data.train.images, seed=seed, epoch=0, batch_size=config.batch_size,
            crop_size=crop_size,
        )  # fmt: skip
        first = {name: array[:steps] for name, array in epoch.items()}
        losses, error_rates, dead = [], [], 0.0
        for number, chunk in enumerate(data.train.dispatches(first)):
            if number == 1:
                dead = devices.fetch(dead_units(state, chunk.batches, data.train.pixels)).item()
            state, outputs = take_steps(state, rng, chunk.batches, data.train.pixels)
            loss, error_rate = devices.fetch(outputs)
            losses += loss.tolist()
            error_rates += error_rate.tolist()
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
