"""Weight normalization of convolutions, initialized from a batch of training images.

Salimans and Kingma 2016, "Weight Normalization". The convolution's weights are v / ||v||, with the
norm of each output channel. The learned scale multiplies the convolution's output, which is the
same as multiplying the weights. Dense layers are not normalized.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bn_vgg.models.batch_norm import MeanOnlyBatchNorm, mean_over_batch

# Limits the scale of a channel that hardly varies over the first batch, such as a dead one. Other
# channels' standard deviations are far larger, because the weights have norm 1.
_MIN_STDEV = 1e-3


def unit_kernel(kernel_33IO):
    """Divides each output channel's weights by their L2 norm; epsilon as in `nn.WeightNorm`."""
    square = jnp.sum(lax.square(kernel_33IO), axis=(0, 1, 2), keepdims=True)
    return kernel_33IO * lax.rsqrt(square + 1e-12)


class WeightNorm(nn.Module):
    """Weight normalization: y = scale * conv(x, v / ||v||) + bias.

    Salimans and Kingma 2016, sections 2 and 3. If m and s are a channel's mean and standard
    deviation over the first batch, scale starts from 1 / s and bias from -m / s, so that y has mean
    0 and variance 1 there. Flax's `nn.WeightNorm` has no such initialization.

    Attributes:
      dtype: of the result; None means that of the input.
    """

    dtype: Any = None

    replaces_bias: ClassVar[bool] = True
    initializes_from_data: ClassVar[bool] = True
    reparametrize = staticmethod(unit_kernel)

    @nn.compact
    def __call__(self, x):
        """Scales and shifts `x` (..., C), the output of a convolution with unit weights."""
        scale = self.param("scale", lambda _: 1 / _stdev_over_batch(x))
        bias = self.param("bias", lambda _: -mean_over_batch(x) / _stdev_over_batch(x))
        broadcast_shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        y = x.astype(jnp.float32) * scale.reshape(broadcast_shape) + bias.reshape(broadcast_shape)
        return y.astype(self.dtype or x.dtype)


class WeightNormMeanOnly(MeanOnlyBatchNorm):
    """Weight normalization with mean-only batch normalization: y = t - mean(t) + bias.

    Salimans and Kingma 2016, section 4: t = scale * conv(x, v / ||v||). scale starts from 1 / s
    as in `WeightNorm`, bias from 0. The running mean is of t. Fields are `MeanOnlyBatchNorm`'s.
    """

    initializes_from_data: ClassVar[bool] = True
    reparametrize = staticmethod(unit_kernel)

    @nn.compact
    def __call__(self, x, use_running_average: bool, mean_of_x: Callable | None = None):
        """Normalizes `x` (..., C), the output of a convolution with unit weights."""
        scale = self.param("scale", lambda _: 1 / _stdev_over_batch(x))
        t = x.astype(jnp.float32) * scale.reshape((1,) * (x.ndim - 1) + (-1,))
        # Report `t` instead of `x`, because the running mean is of `t`.
        reported = t.astype(x.dtype)
        self.sow("intermediates", "before_norm", reported, reduce_fn=lambda _, own: (own,))
        y = super().__call__(
            t,
            # In `init` use the batch's mean, because later layers initialize from the result.
            use_running_average=use_running_average and not self.is_initializing(),
            mean_of_x=(lambda: scale * mean_of_x()) if mean_of_x else None,
        )
        return y.astype(self.dtype or x.dtype)


def _stdev_over_batch(x):
    stdev = jnp.std(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
    return jnp.maximum(stdev, _MIN_STDEV)
