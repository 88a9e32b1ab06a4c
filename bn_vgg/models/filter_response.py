"""Filter response normalization."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class FilterResponseNorm(nn.Module):
    """Filter response normalization with its thresholded linear unit, which replaces ReLU.

    Singh and Krishnan 2020, "Filter Response Normalization Layer". For each example and channel,
    with means over spatial positions, and learned scale (from 1), bias and tau (from 0):

      y = max(scale * x / sqrt(mean(x ** 2) + eps) + bias, tau)

    Attributes:
      eps: positive. Not named `epsilon`, so that it is not set from `config.model.norm_epsilon`.
      dtype: of the result; None means that of the input.
    """

    eps: float = 1e-6
    dtype: Any = None

    replaces_bias: ClassVar[bool] = True
    has_activation: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x_NHWC):
        """Normalizes (N, H, W, C) and applies the threshold."""
        channels = x_NHWC.shape[-1:]
        scale, bias, tau = (
            self.param(name, start, channels, jnp.float32).reshape(1, 1, 1, -1)
            for name, start in (
                ("scale", nn.initializers.ones),
                ("bias", nn.initializers.zeros),
                ("tau", nn.initializers.zeros),
            )
        )
        x = x_NHWC.astype(jnp.float32)
        mean_square_N11C = lax.square(x).mean(axis=(1, 2), keepdims=True)
        y = scale * x * lax.rsqrt(mean_square_N11C + self.eps) + bias
        return jnp.maximum(y, tau).astype(self.dtype or x_NHWC.dtype)
