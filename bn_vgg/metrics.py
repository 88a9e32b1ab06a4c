"""What is measured, accumulated over batches (state, merge, compute: clu.metrics)."""

from collections.abc import Sequence
from functools import partial

import flax
import jax
import jax.numpy as jnp
from clu import metrics
from jax import lax

# Larger than any step.
_NEVER = 2**31 - 1


@flax.struct.dataclass
class FirstNonFinite(metrics.Metric):
    """The first step that made a number which is not finite, and what the one before it had.

    Kept on the device, so that a run is stopped at the right step without fetching the
    loss of each.

    Attributes:
      step: its number, counted from 1; `_NEVER` where all was finite.
      loss: of the last step before it; -1 where there was none.
      gradient_norm: likewise. It can overflow where every gradient is finite.
    """

    step: jnp.ndarray
    loss: jnp.ndarray
    gradient_norm: jnp.ndarray

    @classmethod
    def from_model_output(cls, loss, gradient_norm, step, finite, **_):
        """Takes one step's `loss`, `gradient_norm` and number, and whether all is `finite`."""
        return cls(jnp.where(finite, _NEVER, step).astype(jnp.int32), loss, gradient_norm)

    @classmethod
    def empty(cls):
        """No step yet."""
        # Two arrays: the same buffer cannot be donated twice.
        none = (jnp.asarray(-1, jnp.float32), jnp.asarray(-1, jnp.float32))
        return cls(jnp.asarray(_NEVER, jnp.int32), *none)

    def merge(self, other):
        """Takes the next step in."""
        step = jnp.minimum(self.step, other.step)
        loss = jnp.where(step == _NEVER, other.loss, self.loss)
        norm = jnp.where(step == _NEVER, other.gradient_norm, self.gradient_norm)
        return type(self)(step, loss, norm)

    def compute(self):
        """The step's number, or -1, then the loss and the gradient norm."""
        return jnp.where(self.step == _NEVER, -1, self.step), self.loss, self.gradient_norm


@flax.struct.dataclass
class RunningErrorRate(metrics.Average):
    """The mean of `error_rate_running` over the examples that `compared` marks."""

    @classmethod
    def from_model_output(cls, error_rate_running, compared, **_):
        """Takes a batch's, (N,) both."""
        return super().from_model_output(error_rate_running, mask=compared)


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over training examples; the network's output in training, dropout included."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    error_rate: metrics.Average.from_output("error_rate")  # type: ignore[valid-type]
    gradient_norm: metrics.Average.from_output("gradient_norm")  # type: ignore[valid-type]
    first_non_finite: FirstNonFinite

    def with_leaves(self, numbers: Sequence[float]) -> "TrainMetrics":
        """The same with these numbers as its leaves, as `jax.tree.leaves` orders them."""
        leaves, tree = jax.tree.flatten(self)
        return jax.tree.unflatten(
            tree, [jnp.asarray(x, leaf.dtype) for x, leaf in zip(numbers, leaves, strict=True)]
        )


@flax.struct.dataclass
class _MaskedMetrics(metrics.Collection):
    """Means over evaluated examples; each counts once, padding not at all (`mask`)."""

    @classmethod
    def of(cls, axis_name: str | None, **outputs):
        """Takes a batch's `outputs`, (N,) each; those of all devices along `axis_name`."""
        if axis_name is None:
            return cls.single_from_model_output(**outputs)
        return cls.gather_from_model_output(axis_name=axis_name, **outputs)


@flax.struct.dataclass
class EvalMetrics(_MaskedMetrics):
    """With running statistics: by the five-window rule, and `error_rate_running`.

    That is of the centre window alone and of the `compared` examples: what
    `ComparedMetrics` is to be compared with.
    """

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    error_rate: metrics.Average.from_output("error_rate")  # type: ignore[valid-type]
    error_rate_running: RunningErrorRate


@flax.struct.dataclass
class ComparedMetrics(_MaskedMetrics):
    """With precise statistics, and with those of each evaluated batch; the centre window."""

    error_rate_precise: metrics.Average.from_output("error_rate_precise")  # type: ignore[valid-type]
    error_rate_batch: metrics.Average.from_output("error_rate_batch")  # type: ignore[valid-type]


class Moments(flax.struct.PyTreeNode):
    """Mean, deviation and maximum of each channel, accumulated over batches.

    Attributes:
      count: examples so far, float32.
      total: sum over examples of the mean over positions, (C,).
      squares: likewise of the squares.
      maximum: (C,).
    """

    count: jax.Array
    total: jax.Array
    squares: jax.Array
    maximum: jax.Array

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        """No example yet."""
        # Two arrays of zeros: the same buffer cannot be donated twice.
        total, squares = jnp.zeros(channels, jnp.float32), jnp.zeros(channels, jnp.float32)
        maximum = jnp.full(channels, -jnp.inf, jnp.float32)
        return cls(jnp.zeros((), jnp.float32), total, squares, maximum)

    @classmethod
    def of(cls, x, weights_N, axis_name: str | None) -> "Moments":
        """Takes a batch.

        Args:
          x: (N, ..., C).
          weights_N: 1 for an example, 0 for padding that repeats another.
          axis_name: of the mapped axis whose devices share the batch, or None.
        """
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
        """Of both's examples."""
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
