"""Metrics that are accumulated over batches, in the manner of clu.metrics."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax import lax

# Larger than any step number.
_NEVER = 2**31 - 1


@flax.struct.dataclass
class FirstNonFinite(metrics.Metric):
    """The first step with a number that is not finite; it stays on the device."""

    step: jnp.ndarray

    @classmethod
    def from_model_output(cls, step, finite, **_):
        """Takes a step, counted from 1, and whether all its numbers are `finite`."""
        return cls(jnp.where(finite, _NEVER, step).astype(jnp.int32))

    @classmethod
    def empty(cls):
        """Returns the initial value, before any step."""
        return cls(jnp.asarray(_NEVER, jnp.int32))

    def merge(self, other):
        """Merges with later steps."""
        return type(self)(jnp.minimum(self.step, other.step))

    def compute(self):
        """Returns the step, or -1 if all numbers were finite."""
        # With NumPy: an operation on the device would wait for the queued chunk.
        return np.where(self.step == _NEVER, -1, self.step)


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Averages over training steps, with dropout, and the first step that is not finite."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    error_rate: metrics.Average.from_output("error_rate")  # type: ignore[valid-type]
    gradient_norm: metrics.Average.from_output("gradient_norm")  # type: ignore[valid-type]
    first_non_finite: FirstNonFinite


def _averages(*names: str) -> type[metrics.Collection]:
    """Returns a collection of means over evaluated examples, without padding."""
    return metrics.Collection.create(**{name: metrics.Average.from_output(name) for name in names})


# Metrics of five-crop evaluation.
EvalMetrics = _averages("loss", "error_rate")
# Error rates on central crops, with running, precise and batch statistics.
ComparedMetrics = _averages("error_rate_running", "error_rate_precise", "error_rate_batch")


def gather_metrics(collection, axis_name: str | None, **outputs):
    """Returns the metrics of `outputs`, (N,) each, over all devices; `mask` is 0 for padding."""
    if axis_name is None:
        return collection.single_from_model_output(**outputs)
    return collection.gather_from_model_output(axis_name=axis_name, **outputs)


class Moments(flax.struct.PyTreeNode):
    """Mean, variance and maximum of each channel, accumulated over batches."""

    count: jax.Array  # number of images (each crop in five-crop evaluation), float32
    total: jax.Array  # sum over images of the mean over positions, (C,)
    squares: jax.Array  # sum over images of the mean square over positions, (C,)
    maximum: jax.Array  # (C,)

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        """Returns the initial value, before any example."""
        zeros = jnp.zeros(channels, jnp.float32)
        maximum = jnp.full(channels, -jnp.inf, jnp.float32)
        return cls(jnp.zeros((), jnp.float32), zeros, zeros, maximum)

    @classmethod
    def from_batch(cls, x, mask_N, axis_name: str | None) -> "Moments":
        """Returns the moments of a batch `x` (N, ..., C); `mask_N` is 0 for padding, else 1."""
        positions = tuple(range(1, x.ndim - 1))
        x = x.astype(jnp.float32)
        # Padding repeats other examples, so it does not change the maximum.
        maximum = x.max(axis=(0, *positions))
        product = partial(jnp.dot, mask_N, precision=lax.Precision.HIGHEST)
        sums = (
            mask_N.sum(),
            product(x.mean(axis=positions)),
            product(jnp.square(x).mean(axis=positions)),
        )
        if axis_name is not None:
            sums, maximum = lax.psum(sums, axis_name), lax.pmax(maximum, axis_name)
        return cls(*sums, maximum)

    def merge(self, other: "Moments") -> "Moments":
        """Merges two sets of moments."""
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            jnp.maximum(self.maximum, other.maximum),
        )

    @property
    def mean(self):
        """The mean of each channel, (C,)."""
        return self.total / self.count

    @property
    def variance(self):
        """The biased variance of each channel, (C,)."""
        # Rounding can make the difference negative.
        return (self.squares / self.count - self.mean**2).clip(0)


def merge_moments(left: dict[str, Moments], right: dict[str, Moments]) -> dict[str, Moments]:
    """Merges the moments of each layer."""
    return {layer: left[layer].merge(right[layer]) for layer in left}
