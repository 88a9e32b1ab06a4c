"""Normalizers by statistics of each example alone: the same in training and evaluation.

`GroupNorm`, `LayerNorm` and `InstanceNorm` are Flax's, with Flax's fields. They differ in which
values share a mean and a variance:

  y = scale * (x - mean) / sqrt(var + epsilon) + bias

with scale from 1 and bias from 0 for each channel, and `epsilon` positive, from `config.model`.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Axes
from jax import lax


class GroupNorm(nn.GroupNorm):
    """Group normalization: statistics of each example's groups of consecutive channels.

    Wu and He 2018, "Group Normalization".

    Attributes:
      num_groups: groups of equal size; it must divide every layer's channels. 10 divides the
        recipe's 20 and 50; the paper's 32 does not.
    """

    num_groups: int | None = 10

    replaces_bias: ClassVar[bool] = True


class LayerNorm(nn.LayerNorm):
    """Layer normalization: statistics of each example as a whole, all positions and channels.

    Ba, Kiros and Hinton 2016, "Layer Normalization". Equals `GroupNorm` with one group.
    """

    reduction_axes: Axes = (1, 2, 3)

    replaces_bias: ClassVar[bool] = True


class InstanceNorm(nn.InstanceNorm):
    """Instance normalization: statistics of each example's channels, over the positions.

    Ulyanov, Vedaldi and Lempitsky 2016, "Instance Normalization". Equals `GroupNorm` with one
    group for each channel.
    """

    replaces_bias: ClassVar[bool] = True


class FilterResponseNorm(nn.Module):
    """Filter response normalization with its thresholded linear unit, which replaces ReLU.

    Singh and Krishnan 2020, "Filter Response Normalization Layer". For each example and channel,
    with means over the positions, and learned scale (from 1), bias and tau (from 0):

      y = max(scale * x / sqrt(mean(x ** 2) + eps) + bias, tau)

    Attributes:
      eps: positive. Not named `epsilon`, because the configuration's is made for a variance.
      dtype: of the result; None keeps the input's.
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
