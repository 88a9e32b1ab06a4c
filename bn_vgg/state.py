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
    image_shape: tuple[int, int, int],
) -> TrainState:
    """Initializes everything from `rng` for images of `image_shape` (H, W, C)."""
    variables = jax.jit(lambda rng, x: model.init(rng, x, train=False))(
        rng, jnp.zeros((1, *image_shape), jnp.float32)
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
    )


def num_parameters(params) -> int:
    """Counts trainable numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
