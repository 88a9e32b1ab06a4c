"""Normalizers by per-channel statistics over the batch and all spatial positions.

For evaluation they keep running statistics in the collection `batch_stats`, float32. Their common
fields are set from `config.model`:

  momentum   weight of the old value in the running statistics, at least 0 and less than 1
  epsilon    added to a variance before its square root, positive
  average    the running statistic averages the `variance`, as in Flax, or the `stdev` (standard
             deviation), as in the 2016 post; it is always stored as a variance
  axis_name  mapped axis over which devices share a batch; None if one device has all of it
  dtype      of the result; None means that of the input. Statistics are always float32.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bn_vgg.errors import UserError

# The averaged statistic as a function of the variance, and the inverse function.
AVERAGES = {"variance": (lambda var: var, lambda var: var), "stdev": (jnp.sqrt, jnp.square)}


class MeanOnlyBatchNorm(nn.Module):
    """Mean-only batch normalization: y = x - mean(x) + bias.

    Salimans and Kingma 2016, "Weight Normalization", section 4. The running mean starts from 0.
    """

    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Any = None

    replaces_bias: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x, use_running_average: bool, mean_of_x: Callable | None = None):
        """Normalizes `x` (..., C). With `mean_of_x` its mean takes no pass over `x`."""
        channels = x.shape[-1]
        running = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if use_running_average:
            mean = running.value
        else:
            mean = mean_of_x() if mean_of_x else mean_over_batch(x)
            # `init` has no mapped axis, and must not update the running mean.
            if not self.is_initializing():
                if self.axis_name is not None:
                    mean = lax.pmean(mean, self.axis_name)
                running.value = self.momentum * running.value + (1 - self.momentum) * mean
        shift = (bias - mean).reshape((1,) * (x.ndim - 1) + (channels,))
        return (x.astype(jnp.float32) + shift).astype(self.dtype or x.dtype)


def mean_over_batch(x):
    """Computes the mean of `x` (..., C) for each channel, (C,), float32."""
    return jnp.mean(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))


def batch_moments(x, axes: tuple[int, ...], axis_name: str | None = None):
    """Computes mean and biased variance as Flax's BatchNorm does, float32.

    Both are over `axes`, which remain with size 1, and over the mapped axis, if any.
    """
    x = x.astype(jnp.float32)
    means = x.mean(axes, keepdims=True), lax.square(x).mean(axes, keepdims=True)
    mean, mean_square = lax.pmean(means, axis_name) if axis_name else means
    # If a channel hardly varies, rounding can make the difference negative.
    return mean, jnp.maximum(0.0, mean_square - lax.square(mean))


def normalize_by(x, moments, epsilon: float):
    """Computes (x - mean) / sqrt(var + epsilon), float32, from moments that broadcast."""
    mean, var = moments
    return (x.astype(jnp.float32) - mean) * lax.rsqrt(var + epsilon)


class BatchNormBase(nn.Module):
    """Base class of batch normalization by mean and variance, with scale and bias.

    Running statistics start from mean 0 and variance 1. A subclass defines
    `_normalize_batch(x, running)`, which normalizes a training batch and calls `_update_running`;
    `FullBatchNorm` overrides `__call__` instead.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = None
    average: str = "variance"

    replaces_bias: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        """Normalizes `x` (N, ..., C); in training updates the running statistics."""
        channels, broadcast_shape = x.shape[-1:], (1,) * (x.ndim - 1) + x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        running = mean.value.reshape(broadcast_shape), var.value.reshape(broadcast_shape)
        # `init` may get a batch of any size, such as one that `ghost_size` does not divide.
        if use_running_average or self.is_initializing():
            normalized = normalize_by(x, running, self.epsilon)
        else:
            normalized = self._normalize_batch(x, running)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        y = normalized * scale.reshape(broadcast_shape) + bias.reshape(broadcast_shape)
        return y.astype(self.dtype or x.dtype)

    def _update_running(self, running, batch) -> None:
        """Averages the batch's mean and variance into the running statistics."""
        from_var, to_var = AVERAGES[self.average]
        # The averages do not affect the loss, but a zero gradient through sqrt(0) would be NaN.
        (old_mean, old_var), (mean, var) = running, lax.stop_gradient(batch)
        old_weight, new_weight = self.momentum, 1 - self.momentum
        new_mean = old_weight * old_mean + new_weight * mean
        new_var = to_var(old_weight * from_var(old_var) + new_weight * from_var(var))
        self.put_variable("batch_stats", "mean", new_mean.reshape(-1))
        self.put_variable("batch_stats", "var", new_var.reshape(-1))


class FullBatchNorm(BatchNormBase):
    """Batch normalization: y = scale * (x - mean) / sqrt(var + epsilon) + bias.

    Ioffe and Szegedy 2015, "Batch Normalization". Computed by Flax's BatchNorm, except for the
    running averages. It replaces the convolution's bias even if `use_bias` is False, because
    subtracting the mean cancels any constant.

    Attributes:
      use_scale: whether there is a learned scale, starting from 1.
      use_bias: whether there is a learned bias, starting from 0.
    """

    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        """Normalizes `x` (..., C); in training updates the running statistics."""
        flax_norm = nn.BatchNorm(
            # With momentum 0 Flax stores the batch's statistics, which are averaged below.
            momentum=0.0, epsilon=self.epsilon, dtype=self.dtype or x.dtype,
            use_scale=self.use_scale, use_bias=self.use_bias, axis_name=self.axis_name,
        )  # fmt: skip
        nn.share_scope(self, flax_norm)
        running = self._read_running()
        y = flax_norm(x, use_running_average=use_running_average)
        if not use_running_average and not self.is_initializing():
            self._update_running(running, self._read_running())
        return y

    def _read_running(self):
        return tuple(self.get_variable("batch_stats", name) for name in ("mean", "var"))


class GhostBatchNorm(BatchNormBase):
    """Ghost batch normalization: batch normalization of sub-batches of `ghost_size` examples.

    Hoffer, Hubara and Soudry 2017, "Train longer, generalize better", algorithm 1. Running
    statistics are updated once for each batch, with the sub-batches' average mean and variance (or
    standard deviation); the paper updates them once for each sub-batch.

    Attributes:
      ghost_size: examples of a sub-batch; it must divide each device's share of the batch.
    """

    ghost_size: int = 25

    def _normalize_batch(self, x, running):
        share, size = x.shape[0], self.ghost_size
        if size < 1 or share % size:
            fitting = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
            raise UserError(
                f"config.model.norm_kwargs.ghost_size: {size} does not divide a device's share of"
                f" the batch, {share} examples; these do: {fitting}"
            )
        ghosts = x.reshape(-1, size, *x.shape[1:])
        mean, var = batch_moments(ghosts, tuple(range(1, x.ndim)))
        from_var, to_var = AVERAGES[self.average]
        means = mean.mean(axis=0), from_var(var).mean(axis=0)
        mean_of_means, mean_spread = lax.pmean(means, self.axis_name) if self.axis_name else means
        self._update_running(running, (mean_of_means, to_var(mean_spread)))
        return normalize_by(ghosts, (mean, var), self.epsilon).reshape(x.shape)


class BatchRenorm(BatchNormBase):
    """Batch renormalization: y = scale * ((x - mean) / sigma * r + d) + bias.

    Ioffe 2017, "Batch Renormalization", algorithm 1. mean and sigma = sqrt(var + epsilon) are the
    batch's. r and d, through which no gradient flows, correct the result, within bounds, to what
    the running statistics would give:

      r = clip(sigma / sigma_running, 1 / r_max, r_max)
      d = clip((mean - mean_running) / sigma_running, -d_max, d_max)

    The bounds start at 1 and 0, which is `FullBatchNorm`, and rise linearly after a warm-up. The
    defaults are the paper's; the recipe's 60 epochs on 20,000 images are 12,000 updates, after
    which the bounds are 1.4 and 1.75. The number of updates is in `batch_stats` as `updates`.
    Evaluation by batch statistics also uses r and d.

    Attributes:
      r_max: final upper bound of r and of 1 / r, at least 1.
      d_max: final upper bound of abs(d), at least 0.
      warmup_updates: updates before the bounds begin to rise.
      r_max_updates: updates after which r_max is reached.
      d_max_updates: updates after which d_max is reached.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup_updates: int = 5000
    r_max_updates: int = 40000
    d_max_updates: int = 25000

    def setup(self):
        """Declares the count of updates."""
        self.updates = self.variable("batch_stats", "updates", jnp.zeros, (), jnp.float32)

    def _normalize_batch(self, x, running):
        batch = batch_moments(x, tuple(range(x.ndim - 1)), self.axis_name)
        r, d = self._corrections(running, batch, self.updates.value)
        self.updates.value = self.updates.value + 1
        self._update_running(running, batch)
        return normalize_by(x, batch, self.epsilon) * r + d

    def _corrections(self, running, batch, updates):
        """Computes r and d, in the shape of the moments."""
        r_progress, d_progress = (
            jnp.clip((updates - self.warmup_updates) / max(end - self.warmup_updates, 1), 0, 1)
            for end in (self.r_max_updates, self.d_max_updates)
        )
        r_max, d_max = 1 + (self.r_max - 1) * r_progress, self.d_max * d_progress
        (mean, var), (batch_mean, batch_var) = running, batch
        r = jnp.sqrt((batch_var + self.epsilon) / (var + self.epsilon))
        d = (batch_mean - mean) * lax.rsqrt(var + self.epsilon)
        return lax.stop_gradient((jnp.clip(r, 1 / r_max, r_max), jnp.clip(d, -d_max, d_max)))
