"""What training carries from step to step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """The whole of a run's state: it resumes from this, bit for bit.

    Attributes:
      step: updates done so far, int32.
      params: trainable parameters, float32.
      batch_stats: running statistics, float32; empty where no normalizer keeps any.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self):
        """The collections that the model's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    images_NHWC: jax.Array,
) -> TrainState:
    """Initializes everything from `rng`.

    Args:
      model: its `__call__` takes images and `train`.
      optimizer: of the parameters.
      rng: random key.
      images_NHWC: intensities, (N, H, W, C). Their size is what counts, and, for
        normalizers that initialize from data, what is on them.
    """
    variables = model.init(rng, images_NHWC, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
    )


def jit_init(
    model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[jax.Array, jax.Array], TrainState]:
    """Returns `init_state` of these two, to be called with the others.

    A CPU draws the weights in next to no time, but compiling that took XLA 3.2 s, and 1.3 s at
    this level of optimization. It draws the same ones, but for last digits where data matter.
    """
    options = {"xla_backend_optimization_level": "1"} if jax.default_backend() == "cpu" else None
    return jax.jit(partial(init_state, model, optimizer), compiler_options=options)
