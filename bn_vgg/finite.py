"""Finds the first number that is not finite, by repeating a chunk step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_vgg.data.crops import gather_crops
from bn_vgg.data.pipeline import Chunk
from bn_vgg.errors import UserError, first_line
from bn_vgg.programs import Programs
from bn_vgg.steps import TrainState, make_loss_fn

_PARTS = {
    "batch_stats": "running statistic",
    "opt_state": "optimizer state",
    "params": "parameter",
}
_ADVICE = "; add --config.debug.nans=True to learn which operation makes a NaN"


def describe_first_non_finite(
    programs: Programs,
    state_and_metrics: tuple[TrainState, Any],
    chunk: Chunk,
    rng: Any,
    *,
    find_operation: bool,
) -> str:
    """Describes the first number that is not finite, and its step, in `chunk`.

    `state_and_metrics` are those before the chunk; they and `rng`, the epoch's key, are on the
    devices. With `find_operation` the text also names the operation that makes a NaN, as
    `jax.debug_nans` reports it; operations that make an infinity are not reported.
    """
    devices = programs.devices
    inspect = devices.compile(make_inspect(programs))
    for index in range(chunk.num_steps):
        state, _ = state_and_metrics
        single_step = chunk.step(index, devices)
        batches, pixels = single_step.batches, single_step.pixels
        state_and_metrics = programs.train_chunk(state_and_metrics, rng, batches, pixels)
        after, metrics = devices.fetch(state_and_metrics)
        if metrics.compute()["finite"] < 1:
            break
    inspected = devices.fetch(inspect(state, rng, batches, pixels))
    what = _name_first_non_finite(inspected, after)
    norm = f"config.model.norm={programs.model.norm.name}"
    where = f"at step {after.step}, with {norm}, {what} is not a finite number"
    if not find_operation:
        return where + _ADVICE
    return f"{where}{_find_nan_operation(programs, state, rng, single_step)}"


def _find_nan_operation(programs: Programs, state, rng, single_step: Chunk) -> str:
    devices, inspect, batches = programs.devices, make_inspect(programs), single_step.batches
    if devices.axis_name is not None:
        # `jax.debug_nans` names no operation within a pmap: map on one device instead.
        inspect = jax.vmap(inspect, (None, None, 0, None), axis_name=devices.axis_name)
        state, rng, pixels = map(devices.first, (state, rng, single_step.pixels))
        single_step, batches = single_step._replace(pixels=pixels), jax.device_get(batches)
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(jax.jit(inspect)(state, rng, batches, single_step.pixels))
        except (FloatingPointError, UserError) as error:  # the latter from a user's normalizer
            return f": {first_line(error)}"
    return "; no operation makes a NaN"


def make_inspect(programs: Programs):
    """Returns `inspect(state, rng, batches, pixels)` -> loss, gradients and statistics."""
    loss_fn = make_loss_fn(programs.model, programs.augment)
    axis_name = programs.devices.axis_name

    def inspect(state: TrainState, rng, batches, pixels):
        batch = {key: array[0] for key, array in batches.items()}
        batch |= {"crops": gather_crops(batch, pixels, programs.crop_size)}
        (loss, (_, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, rng
        )
        # Statistics are returned so that `debug_nans` sees them: XLA removes unused results.
        inspected = {"loss": loss, "gradients": gradients, "batch_stats": batch_stats}
        return inspected if axis_name is None else lax.pmean(inspected, axis_name)

    return inspect


def _name_first_non_finite(inspected: dict[str, Any], after: TrainState) -> str:
    if not np.isfinite(inspected["loss"]):
        return "the loss"
    if path := _not_finite(inspected["gradients"]):
        return f"the gradient of {path}"
    for part, name in _PARTS.items():
        if path := _not_finite(getattr(after, part)):
            return f"the {name} {path}"
    return "a number that is finite when the step is taken again"


def _not_finite(tree) -> str:
    """Returns the path of the first array that is not finite, or an empty string."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.isfinite(leaf).all():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""
