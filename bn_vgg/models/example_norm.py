"""Normalizers by statistics of each example alone: the same in training and evaluation.

The first three are Flax's own modules with our defaults. They differ in the values that
share a mean and a variance: y = scale * (x - mean) / sqrt(var + epsilon) + bias, with
scale from 1 and bias from 0 for each channel. They replace the convolution's bias.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Axes
from jax import lax

from bn_vgg.errors import UserError


class GroupNorm(nn.GroupNorm):
    """Group normalization: statistics of each example's groups of consecutive channels.

    Wu and He 2018, "Group Normalization". Fields are Flax's.

    Attributes:
      num_groups: of the same size. It must divide every layer's channels; 10 divides the
        recipe's 20 and 50, the paper's 32 does not.
    """

    num_groups: int | None = 10

    replaces_bias: ClassVar[bool] = True

    def __call__(self, x, *, mask=None):
        """Normalizes `x` of shape (N, H, W, C).

        Raises:
          UserError: `num_groups` does not divide C.
        """
        channels, groups = x.shape[-1], self.num_groups
        if groups is not None and (groups < 1 or channels % groups):
            raise UserError(
                f"config.model.norm_kwargs.num_groups: {groups} does not divide a layer's"
                f" {channels} channels"
            )
        # Flax's default result type would make float32 of bfloat16.
        return super().__call__(x, mask=mask).astype(self.dtype or x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalization: statistics of each example as a whole, all positions and channels.

    Ba, Kiros and Hinton 2016, "Layer Normalization". Equals `GroupNorm` with one group.
    Fields are Flax's.
    """

    reduction_axes: Axes = (1, 2, 3)
    feature_axes: Axes = -1

    replaces_bias: ClassVar[bool] = True

    def __call__(self, x, *, mask=None):
        """Normalizes `x` of shape (N, H, W, C)."""
        return super().__call__(x, mask=mask).astype(self.dtype or x.dtype)


class InstanceNorm(nn.InstanceNorm):
    """Instance normalization: statistics of each example's channels, over the positions.

    Ulyanov, Vedaldi and Lempitsky 2016, "Instance Normalization". Equals `GroupNorm`
    with a group for each channel. Fields are Flax's.
    """

    replaces_bias: ClassVar[bool] = True

    def __call__(self, x, *, mask=None):
        """Normalizes `x` of shape (N, H, W, C)."""
        return super().__call__(x, mask=mask).astype(self.dtype or x.dtype)


class FilterResponseNorm(nn.Module):
    """Filter response normalization and its thresholded linear unit, in the place of ReLU.

    Singh and Krishnan 2020, "Filter Response Normalization Layer". For each example and
    channel, over the positions, and with a learned threshold tau from 0:

      nu2 = mean(x ** 2)
      y = scale * x / sqrt(nu2 + eps) + bias
      z = max(y, tau)

    No mean is subtracted; the learned bias, from 0, replaces the convolution's.

    Attributes:
      eps: the paper's constant, which it learns only where a map is a single position.
        Not named `epsilon`: the configuration's is 1e-4 and made for a variance.
      dtype: of the result; None keeps the input's. nu2 is always float32.
    """

    eps: float = 1e-6
    dtype: Any = None

    replaces_bias: ClassVar[bool] = True
    has_activation: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x_NHWC):
        """Normalizes (N, H, W, C) and applies the threshold."""

        def declare(name, initializer):
            vector_C = self.param(name, initializer, x_NHWC.shape[-1:], jnp.float32)
            return vector_C.reshape(1, 1, 1, -1)

        scale = declare("scale", nn.initializers.ones)
        bias = declare("bias", nn.initializers.zeros)
        tau = declare("tau", nn.initializers.zeros)
        x = x_NHWC.astype(jnp.float32)
        nu2_N11C = lax.square(x).mean(axis=(1, 2), keepdims=True)
        y = scale * x * lax.rsqrt(nu2_N11C + self.eps) + bias
        return jnp.maximum(y, tau).astype(self.dtype or x_NHWC.dtype)
