"""What is measured, accumulated over batches (state, merge, compute: clu.metrics)."""

import flax
import jax.numpy as jnp
from clu import metrics

# Larger than any step.
_NEVER = 2**31 - 1


@flax.struct.dataclass
class FirstNonFinite(metrics.Metric):
    """The first step whose loss was not a finite number; -1 where all were.

    Kept on the device, so that a run is stopped at the right step without fetching the
    loss of each.
    """

    step: jnp.ndarray

    @classmethod
    def from_model_output(cls, loss, step, **_):
        """Takes one step's `loss` and the step's number, counted from 1."""
        return cls(step=jnp.where(jnp.isfinite(loss), _NEVER, step).astype(jnp.int32))

    @classmethod
    def empty(cls):
        """No step yet."""
        return cls(step=jnp.asarray(_NEVER, jnp.int32))

    def merge(self, other):
        """The earlier of the two."""
        return type(self)(step=jnp.minimum(self.step, other.step))

    def reduce(self):
        """The earliest of an axis of them."""
        return type(self)(step=jnp.min(self.step))

    def compute(self):
        """The step's number, or -1."""
        return jnp.where(self.step == _NEVER, -1, self.step)


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over training examples; the network's output in training, dropout included."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    error_rate: metrics.Average.from_output("error_rate")  # type: ignore[valid-type]
    gradient_norm: metrics.Average.from_output("gradient_norm")  # type: ignore[valid-type]
    first_non_finite: FirstNonFinite


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Means over evaluated examples; each counts once, padding not at all (`mask`)."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    error_rate: metrics.Average.from_output("error_rate")  # type: ignore[valid-type]
