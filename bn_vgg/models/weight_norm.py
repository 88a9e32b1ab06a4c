"""Normalizers of a convolution's weights instead of its results."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bn_vgg.models.batch_norm import MeanOnlyBatchNorm, mean_over_batch

# A channel that hardly varies over the first batch, a dead one for example, would start
# with an enormous or infinite scale. The weights have norm 1, so a living channel's
# standard deviation lies far above.
_LEAST_STDEV = 1e-3


class WeightNorm(nn.Module):
    """Weight normalization: the weights of each output channel are scale * v / ||v||.

    Salimans and Kingma 2016, "Weight Normalization". `kernel` makes v / ||v|| of the raw
    weights v; multiplying the convolution's result by the scale is the same function as
    multiplying the weights. Only for the convolutions: the recipe normalizes no dense layer.

    Initialized from data, section 3 of the paper: with m and s the mean and standard
    deviation of a channel over the first batch, scale = 1 / s and bias = -m / s, so that
    the results there have mean 0 and variance 1.

    Flax's `nn.WeightNorm` wraps a layer and sees its weights alone, never its results,
    from which scale and bias start here. The same parameters give the same function.

    Attributes:
      dtype: of the result; None keeps the input's.
    """

    dtype: Any = None

    replaces_bias: ClassVar[bool] = True
    initializes_from_data: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x):
        """Scales and shifts `x` of shape (..., C), the result with the weights of `kernel`."""
        scale = self.param("scale", lambda _: 1 / _stdev_over_batch(x))
        bias = self.param("bias", lambda _: -mean_over_batch(x) / _stdev_over_batch(x))
        like_x = (1,) * (x.ndim - 1) + x.shape[-1:]
        y = x.astype(jnp.float32) * scale.reshape(like_x) + bias.reshape(like_x)
        return y.astype(self.dtype or x.dtype)

    def kernel(self, kernel_33IO):
        """Computes v / ||v||, the norm over taps and inputs; epsilon as in `nn.WeightNorm`."""
        return unit_kernel(kernel_33IO)


class WeightNormMeanOnly(MeanOnlyBatchNorm):
    """Weight normalization with mean-only batch normalization.

    Salimans and Kingma 2016, "Weight Normalization", section 4: with v the raw weights,

      t = scale * conv(x, v / ||v||)
      y = t - mean(t) + bias

    Initialized from data, as `WeightNorm` is: scale = 1 / s; bias = 0, as the mean is
    subtracted anyway. The running mean is of t and kept as `MeanOnlyBatchNorm` keeps it.
    Fields are `MeanOnlyBatchNorm`'s.
    """

    initializes_from_data: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x, use_running_average: bool, mean_of_x: Callable[[], jax.Array] | None = None
    ):
        """Normalizes `x` of shape (..., C), the result with the weights of `kernel`.

        In training (`use_running_average` False) subtracts the batch's own mean and moves
        the running mean towards it. `mean_of_x`, where it is given, computes the mean of
        `x`, (C,) and float32, without a pass over it.
        """
        scale = self.param("scale", lambda _: 1 / _stdev_over_batch(x))
        t = x.astype(jnp.float32) * scale.reshape((1,) * (x.ndim - 1) + (-1,))
        y = super().__call__(
            t,
            # There is no running mean yet, and the layers above initialize from the result.
            use_running_average=use_running_average and not self.is_initializing(),
            mean_of_x=(lambda: scale * mean_of_x()) if mean_of_x else None,
        )
        return y.astype(self.dtype or x.dtype)

    def kernel(self, kernel_33IO):
        """Computes v / ||v||, as `WeightNorm.kernel`."""
        return unit_kernel(kernel_33IO)


def unit_kernel(kernel_33IO):
    """Divides the weights by their norm over taps and inputs, one for each output."""
    square = jnp.sum(lax.square(kernel_33IO), axis=(0, 1, 2), keepdims=True)
    return kernel_33IO * lax.rsqrt(square + 1e-12)


def _stdev_over_batch(x):
    """Computes the standard deviation of `x` (..., C) for each channel, (C,), float32."""
    stdev = jnp.std(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
    return jnp.maximum(stdev, _LEAST_STDEV)
