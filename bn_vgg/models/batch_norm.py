"""Normalizers by statistics over the batch and all positions, for each channel.

All keep running statistics in `batch_stats`, float32, for use at evaluation.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bn_vgg.errors import UserError


class MeanOnlyBatchNorm(nn.Module):
    """Mean-only batch normalization: y = x - mean(x) + bias, for each channel.

    Salimans and Kingma 2016, "Weight Normalization", section 4. The mean is taken
    over every axis but the last. No division, no scale. Conventions, field names and
    the order of the running average's terms are `flax.linen.BatchNorm`'s.

    Attributes:
      momentum: weight of the old value in the running mean, which starts from 0.
      axis_name: of the mapped axis whose devices share one batch; None where the
        batch is whole.
      dtype: of the result; None keeps the input's. The mean is always float32.
    """

    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Any = None

    replaces_bias: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x, use_running_average: bool, mean_of_x: Callable[[], jax.Array] | None = None
    ):
        """Normalizes `x` of shape (..., C).

        In training (`use_running_average` False) subtracts the batch's own mean and moves
        the running mean towards it, for which `batch_stats` must be mutable. `mean_of_x`,
        where it is given, computes that mean, (C,) and float32, without a pass over `x`:
        the whole layer is then no more than a bias.
        """
        channels = x.shape[-1]
        running = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if use_running_average:
            mean = running.value
        else:
            mean = mean_of_x() if mean_of_x else mean_over_batch(x)
            # While initializing there is no mapped axis, and no batch to learn from.
            if not self.is_initializing():
                if self.axis_name is not None:
                    mean = lax.pmean(mean, self.axis_name)
                running.value = self.momentum * running.value + (1 - self.momentum) * mean
        dtype = self.dtype or x.dtype
        shift = (bias - mean).reshape((1,) * (x.ndim - 1) + (channels,))
        return (x.astype(jnp.float32) + shift).astype(dtype)


def mean_over_batch(x):
    """Computes the mean of `x` (..., C) for each channel, (C,), float32."""
    return jnp.mean(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))


def batch_moments(x, axes: tuple[int, ...], axis_name: str | None = None):
    """Computes mean and biased variance over `axes` and a mapped axis, as Flax's BatchNorm does.

    Float32. The axes stay, with size 1, so that both broadcast against `x`.
    """
    x = x.astype(jnp.float32)
    means = x.mean(axes, keepdims=True), lax.square(x).mean(axes, keepdims=True)
    mean, mean_square = lax.pmean(means, axis_name) if axis_name else means
    # Rounding can make the difference negative where a channel hardly varies.
    return mean, jnp.maximum(0.0, mean_square - lax.square(mean))


def normalize_by(x, moments, epsilon: float):
    """Computes (x - mean) / sqrt(var + epsilon), float32, of moments that broadcast."""
    mean, var = moments
    return (x.astype(jnp.float32) - mean) * lax.rsqrt(var + epsilon)


# What of the variance is averaged from batch to batch, and the way back.
AVERAGES = {"variance": (lambda var: var, lambda var: var), "stdev": (jnp.sqrt, jnp.square)}


class MomentNorm(nn.Module):
    """Fields, running statistics, scale and shift of the normalizers by mean and variance.

    Attributes:
      momentum: weight of the old value in the running statistics, which start from 0
        (mean) and 1 (variance).
      epsilon: added to a variance before its square root.
      axis_name: of the mapped axis whose devices share one batch; None where the
        batch is whole.
      dtype: of the result; None keeps the input's. Statistics are always float32.
      average: of what the running average is, a key of `AVERAGES`: of the `variance`,
        as in Flax, or of the `stdev`, as in the 2016 original. Either is kept as a
        variance, under Flax's name `var`.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = None
    average: str = "variance"

    replaces_bias: ClassVar[bool] = True

    def setup(self):
        """Refuses an unknown `average`."""
        if self.average not in AVERAGES:
            known = ", ".join(AVERAGES)
            raise UserError(f"config.model.stats_average: no {self.average!r}; there are: {known}")

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        """Normalizes `x` of shape (N, ..., C); in training moves the running statistics."""
        channels, like_x = x.shape[-1:], (1,) * (x.ndim - 1) + x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        running = mean.value.reshape(like_x), var.value.reshape(like_x)
        # Initializing takes a batch of any size: it only learns the shapes.
        if use_running_average or self.is_initializing():
            normal = normalize_by(x, running, self.epsilon)
        else:
            normal = self._normalize_batch(x, running)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        y = normal * scale.reshape(like_x) + bias.reshape(like_x)
        return y.astype(self.dtype or x.dtype)

    def _move(self, old, batch) -> None:
        """Sets the running statistics from `old` and `batch`, mean and var each."""
        of_var, to_var = AVERAGES[self.average]
        # The loss does not depend on them, and a square root has no slope at 0.
        (old_mean, old_var), (mean, var) = old, lax.stop_gradient(batch)
        keep, learn = self.momentum, 1 - self.momentum
        new_mean = keep * old_mean + learn * mean
        new_var = to_var(keep * of_var(old_var) + learn * of_var(var))
        self.put_variable("batch_stats", "mean", new_mean.reshape(-1))
        self.put_variable("batch_stats", "var", new_var.reshape(-1))


class FullBatchNorm(MomentNorm):
    """Batch normalization: y = scale * (x - mean) / sqrt(var + epsilon) + bias.

    Ioffe and Szegedy 2015. The computation is Flax's own BatchNorm; only the running
    statistics are averaged here, so that the choice of `average` is ours. Without a
    bias, too, it replaces the convolution's: the mean takes away any constant.

    Attributes:
      use_scale: whether there is a learned scale, from 1.
      use_bias: whether there is a learned bias, from 0.
    """

    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        """Normalizes `x` of shape (..., C); in training moves the running statistics."""
        flax_norm = nn.BatchNorm(
            # Flax keeps momentum * old + (1 - momentum) * batch. With 0 it leaves this batch's own
            # statistics, which are read back below and averaged as the recipe does.
            momentum=0.0, epsilon=self.epsilon, dtype=self.dtype or x.dtype,
            use_scale=self.use_scale, use_bias=self.use_bias, axis_name=self.axis_name,
        )  # fmt: skip
        nn.share_scope(self, flax_norm)
        old = self._kept()
        y = flax_norm(x, use_running_average=use_running_average)
        if not use_running_average and not self.is_initializing():
            self._move(old, self._kept())
        return y

    def _kept(self):
        return tuple(self.get_variable("batch_stats", name) for name in ("mean", "var"))


class GhostBatchNorm(MomentNorm):
    """Batch normalization of each sub-batch of `ghost_size` consecutive examples by itself.

    Hoffer, Hubara and Soudry 2017, "Train longer, generalize better", algorithm 1. The
    formula is `FullBatchNorm`'s. The running statistics move once for each batch, to
    the mean over its sub-batches of their means and variances (or standard
    deviations); the paper moves them once for each sub-batch.

    Attributes:
      ghost_size: examples of a sub-batch. It lies on one device, so `ghost_size` must
        divide each device's share of a training batch.
    """

    ghost_size: int = 25

    def _normalize_batch(self, x, running):
        """Normalizes (N, ..., C) by its sub-batches.

        Raises:
          UserError: `ghost_size` does not divide N.
        """
        _check_share(x.shape[0], self.ghost_size)
        # G sub-batches: (G, ghost_size, ..., C).
        ghosts = x.reshape(-1, self.ghost_size, *x.shape[1:])
        mean, var = batch_moments(ghosts, tuple(range(1, x.ndim)))
        of_var, to_var = AVERAGES[self.average]
        means = mean.mean(axis=0), of_var(var).mean(axis=0)
        over_ghosts, spread = lax.pmean(means, self.axis_name) if self.axis_name else means
        self._move(running, (over_ghosts, to_var(spread)))
        return normalize_by(ghosts, (mean, var), self.epsilon).reshape(x.shape)


def _check_share(share: int, ghost_size: int) -> None:
    if ghost_size < 1 or share % ghost_size:
        fitting = ", ".join(str(size) for size in range(1, share + 1) if share % size == 0)
        raise UserError(
            f"config.model.norm_kwargs.ghost_size: {ghost_size} does not divide a device's"
            f" share of the batch, {share} examples; these do: {fitting}"
        )
