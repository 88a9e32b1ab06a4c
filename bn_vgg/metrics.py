"""Metrics that are accumulated over batches, in the manner of clu.metrics."""

import flax
import jax
import jax.numpy as jnp
from clu import metrics
from jax import lax


def _averages(*names: str) -> type[metrics.Collection]:
    return metrics.Collection.create(**{name: metrics.Average.from_output(name) for name in names})


# Means over training steps, with dropout; `finite` is the share of finite steps.
TrainMetrics = _averages("loss", "error_rate", "gradient_norm", "finite")
# Means over evaluated examples, without padding, of five-crop evaluation.
EvalMetrics = _averages("loss", "error_rate")
# Error rates on central crops, with running, precise and batch statistics.
ComparedMetrics = _averages("error_rate_running", "error_rate_precise", "error_rate_batch")


def gather_metrics(collection, axis_name: str | None, **outputs):
    """Returns the metrics of `outputs`, (N,) each, over all devices; `mask` is 0 for padding."""
    if axis_name is None:
        return collection.single_from_model_output(**outputs)
    return collection.gather_from_model_output(axis_name=axis_name, **outputs)


class Moments(flax.struct.PyTreeNode):
    """Mean and variance of each channel, accumulated over batches."""

    count: jax.Array  # number of images, float32
    total: jax.Array  # sum over images of the mean over positions, (C,)
    squares: jax.Array  # sum over images of the mean square over positions, (C,)

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        """Returns the initial value, before any example."""
        zeros = jnp.zeros(channels, jnp.float32)
        return cls(jnp.zeros((), jnp.float32), zeros, zeros)

    @classmethod
    def from_batch(cls, x, axis_name: str | None) -> "Moments":
        """Returns the moments of a batch `x` (N, ..., C)."""
        positions, x = tuple(range(1, x.ndim - 1)), x.astype(jnp.float32)
        sums = (
            jnp.float32(len(x)),
            x.mean(axis=positions).sum(axis=0),
            jnp.square(x).mean(axis=positions).sum(axis=0),
        )
        return cls(*(sums if axis_name is None else lax.psum(sums, axis_name)))

    @property
    def mean(self):
        """The mean of each channel, (C,)."""
        return self.total / self.count

    @property
    def variance(self):
        """The biased variance of each channel, (C,)."""
        # Rounding can make the difference negative.
        return (self.squares / self.count - self.mean**2).clip(0)
