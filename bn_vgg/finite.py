"""Finds the first number that is not finite: takes the steps of a chunk once more, one by one."""

from typing import Any

import jax
import jax.numpy as jnp

from bn_vgg.data.crops import crops_of
from bn_vgg.data.pipeline import Chunk
from bn_vgg.errors import UserError, first_line
from bn_vgg.programs import Programs
from bn_vgg.steps import TrainState, make_loss

# In the order in which a step computes them. A gradient that is not finite shows in the second.
_PARTS = {
    "batch_stats": "running statistic",
    "opt_state": "optimizer state",
    "params": "parameter",
}
_ADVICE = "; with --config.debug.nans=True the same command names the operation of a NaN"


def explain(
    programs: Programs,
    state: TrainState,
    chunk: Chunk,
    rng: Any,
    *,
    index: int,
    find_operation: bool,
) -> str:
    """Says what is not finite after a step, and the loss of the step before it.

    Args:
      programs: of the run.
      state: what the chunk began with, on the devices.
      chunk: that holds the step.
      rng: the epoch's dropout key, on the devices.
      index: of the step, within the chunk.
      find_operation: whether to look for the operation that makes a NaN (`jax.debug_nans`); it
        names none that makes an infinity.
    """
    devices, after, losses = programs.devices, state, []
    for i in range(index + 1):
        state, one = after, chunk.step(i, devices)
        after, metrics = programs.train_chunk(
            (state, programs.empty_training), rng, one.batches, one.pixels
        )
        losses.append(devices.fetch(metrics).compute()["loss"].item())
    before = f" (the step before had a loss of {losses[-2]:.4g})" if index else ""
    what = "the loss"
    if jnp.isfinite(losses[-1]):
        what = _first(devices.fetch(after))
    operation = _operation(programs, state, rng, one) if find_operation else _ADVICE
    return f"{what} is not a finite number{before}{operation}"


def _first(state: TrainState) -> str:
    for part, name in _PARTS.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            if not jnp.isfinite(leaf).all():
                return f"the {name} {jax.tree_util.keystr(path, simple=True, separator='/')}"
    return "a number that is finite when the step is taken again"


def _operation(programs: Programs, state, rng, one: Chunk) -> str:
    devices, batches, pixels = programs.devices, one.batches, one.pixels
    gradients = jax.value_and_grad(make_loss(programs.model), has_aux=True)

    def take(state: TrainState, rng, batches, pixels):
        batch = {key: array[0] for key, array in batches.items()}
        batch |= {"crops": crops_of(batch, pixels, programs.crop_size)}
        return gradients(state.params, state.batch_stats, batch, rng)

    if devices.axis_name is not None:
        # Of a mapped program JAX does not say which operation: all shares on one device.
        take = jax.vmap(take, (None, None, 0, None), axis_name=devices.axis_name)
        state, rng, pixels = map(devices.first, (state, rng, pixels))
        batches = jax.device_get(batches)
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(jax.jit(take)(state, rng, batches, pixels))
        except (FloatingPointError, UserError) as error:  # the latter from a user's normalizer
            return f": {first_line(error)}"
    return "; no operation makes a NaN"
