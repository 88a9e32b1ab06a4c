"""Finds the first number that is not finite: takes the steps of a chunk once more, one by one."""

from typing import Any

import jax
import jax.numpy as jnp

from bn_vgg.data.pipeline import Chunk
from bn_vgg.programs import Programs
from bn_vgg.steps import TrainState

# In the order in which a step computes them. A gradient that is not finite shows in the second.
_PARTS = {
    "batch_stats": "running statistic",
    "opt_state": "optimizer state",
    "params": "parameter",
}


def explain(
    programs: Programs,
    state: TrainState,
    chunk: Chunk,
    rng: Any,
    index: int,
) -> str:
    """Says what is not finite after the step `index` of a chunk that began with `state`."""
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
    return f"{what} is not a finite number{before}"


def _first(state: TrainState) -> str:
    for part, name in _PARTS.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            if not jnp.isfinite(leaf).all():
                return f"the {name} {jax.tree_util.keystr(path, simple=True, separator='/')}"
    return "a number that is finite when the step is taken again"
