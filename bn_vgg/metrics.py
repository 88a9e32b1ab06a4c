"""What is measured, accumulated over batches (state, merge, compute: clu.metrics)."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax import lax

# Larger than any step.
_NEVER = 2**31 - 1


@flax.struct.dataclass
class FirstNonFinite(metrics.Metric):
    """The number of the first step that made a number which is not finite; kept on the device."""

    step: jnp.ndarray

    @classmethod
    def from_model_output(cls, step, finite, **_):
        """Takes one step's number, counted from 1, and whether all its numbers are `finite`."""
        return cls(jnp.where(finite, _NEVER, step).astype(jnp.int32))

    @classmethod
    def empty(cls):
        """No step yet."""
        return cls(jnp.asarray(_NEVER, jnp.int32))

    def merge(self, other):
        """Takes later steps in."""
        return type(self)(jnp.minimum(self.step, other.step))

    def compute(self):
        """The step's number; -1 where all was finite."""
        # On the host: an operation on the device would wait for the chunk that is queued there.
        return np.where(self.step == _NEVER, -1, self.step)


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over training examples; the network's output in training, dropout included."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    error_rate: metrics.Average.from_output("error_rate")  # type: ignore[valid-type]
    gradient_norm: metrics.Average.from_output("gradient_norm")  # type: ignore[valid-type]
    first_non_finite: FirstNonFinite


def _means_of(*names: str) -> type[metrics.Collection]:
    """Of evaluated examples; each counts once, padding not at all."""
    return metrics.Collection.create(**{name: metrics.Average.from_output(name) for name in names})


# By five-crop evaluation.
EvalMetrics = _means_of("loss", "error_rate")
# By the central crop, with running, with precise and with each evaluated batch's statistics.
ComparedMetrics = _means_of("error_rate_running", "error_rate_precise", "error_rate_batch")


def measured(collection, axis_name: str | None, **outputs):
    """Takes a batch's `outputs`, (N,) each, of all devices; `mask` is 0 for padding."""
    if axis_name is None:
        return collection.single_from_model_output(**outputs)
    return collection.gather_from_model_output(axis_name=axis_name, **outputs)


class Moments(flax.struct.PyTreeNode):
    """Mean, deviation and maximum of each channel, accumulated over batches."""

    count: jax.Array  # examples so far, float32
    total: jax.Array  # sum over examples of the mean over positions, (C,)
    squares: jax.Array  # likewise of the squares
    maximum: jax.Array  # (C,)

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        """No example yet."""
        zeros = jnp.zeros(channels, jnp.float32)
        maximum = jnp.full(channels, -jnp.inf, jnp.float32)
        return cls(jnp.zeros((), jnp.float32), zeros, zeros, maximum)

    @classmethod
    def of(cls, x, weights_N, axis_name: str | None) -> "Moments":
        """Takes a batch `x` (N, ..., C); weights are 0 for padding that repeats others, else 1."""
        positions = tuple(range(1, x.ndim - 1))
        x = x.astype(jnp.float32)
        maximum = x.max(axis=(0, *positions))
        product = partial(jnp.dot, weights_N, precision=lax.Precision.HIGHEST)
        sums = (
            weights_N.sum(),
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
        """(C,)."""
        return self.total / self.count

    @property
    def variance(self):
        """(C,), biased. Rounding can make the difference negative."""
        return (self.squares / self.count - self.mean**2).clip(0)


def merge_moments(left: dict[str, Moments], right: dict[str, Moments]) -> dict[str, Moments]:
    """Merges those of each layer."""
    return {layer: left[layer].merge(right[layer]) for layer in left}
