"""What training carries from step to step."""

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
    variables = jax.jit(lambda rng, x: model.init(rng, x, train=False))(rng, images_NHWC)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
    )


def num_parameters(params) -> int:
    """Counts trainable numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
