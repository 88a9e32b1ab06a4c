"""The normalizers and the table of their names.

To add one, write a linen module here, to the conventions of `flax.linen.BatchNorm`,
and name it in `NORMALIZERS`; `config.model.norm` then takes that name. A normalizer

  * may have any of the fields `momentum`, `epsilon`, `axis_name` and `dtype`: those
    that it has are set from the configuration;
  * is called with `(x_NHWC, use_running_average=bool)` and returns the same shape;
  * keeps what it carries from batch to batch in the collection `batch_stats`;
  * says in `has_shift` whether it adds a learned shift per channel, in which case
    the convolution in front of it has no bias.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bn_vgg.errors import UserError


class NoNorm(nn.Module):
    """Leaves its input as it is: the control of every comparison."""

    has_shift: ClassVar[bool] = False

    def __call__(self, x_NHWC, use_running_average: bool):
        """Returns `x_NHWC`."""
        del use_running_average
        return x_NHWC


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

    has_shift: ClassVar[bool] = True
    takes_mean: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x, use_running_average: bool, mean_of_x: Callable[[], jax.Array] | None = None
    ):
        """Normalizes `x` of shape (..., C).

        In training (`use_running_average` False) subtracts the batch's own mean and,
        where `batch_stats` is mutable, moves the running mean towards it. `mean_of_x`,
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


class FullBatchNorm(nn.BatchNorm):
    """Flax's BatchNorm: y = scale * (x - mean) / sqrt(var + epsilon) + bias.

    Ioffe and Szegedy 2015. The variance is biased; its running average, from 1, is of
    the variance, where the 2016 original averaged the standard deviation.
    """

    has_shift: ClassVar[bool] = True


NORMALIZERS: dict[str, type[nn.Module]] = {
    "none": NoNorm,
    "mean_only": MeanOnlyBatchNorm,
    "full": FullBatchNorm,
}


@dataclasses.dataclass(frozen=True)
class NormFactory:
    """Makes one normalizer per layer, so that blocks never see a name or a setting.

    Attributes:
      make: takes a module's `name`, returns the module.
      has_shift: whether the normalizer takes the place of the convolution's bias.
      takes_mean: whether it is called with `mean_of_x`, see `MeanOnlyBatchNorm`.
    """

    make: Callable[..., nn.Module]
    has_shift: bool
    takes_mean: bool = False


def make_norm_factory(
    norm: str, *, decay: float, epsilon: float, axis_name: str | None, dtype: Any
) -> NormFactory:
    """Looks up `norm` and binds the settings that it has fields for.

    Args:
      norm: a name in `NORMALIZERS`.
      decay: weight of the old value in running statistics (Flax's `momentum`).
      epsilon: added to a variance before its square root.
      axis_name: mapped axis over which statistics are shared, or None.
      dtype: of the normalizer's result.

    Raises:
      UserError: there is no such normalizer.
    """
    if norm not in NORMALIZERS:
        raise UserError(f"config.model.norm: no {norm!r}; there are: {', '.join(NORMALIZERS)}")
    module = NORMALIZERS[norm]
    fields = {field.name for field in dataclasses.fields(module)}
    settings = {"momentum": decay, "epsilon": epsilon, "axis_name": axis_name, "dtype": dtype}
    bound = {key: value for key, value in settings.items() if key in fields}
    return NormFactory(
        make=lambda name: module(name=name, **bound),
        has_shift=module.has_shift,  # type: ignore[attr-defined]
        takes_mean=getattr(module, "takes_mean", False),
    )
