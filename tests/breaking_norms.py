"""Normalizers that do nothing, but for a flaw that shows at step `at`."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class _Flawed(nn.Module):
    at: int = 4
    axis_name: str | None = None  # its statistics are alike on all devices

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        count = self.variable("batch_stats", "count", jnp.zeros, ())
        var = self.variable("batch_stats", "var", jnp.ones, ())
        scale = self.param("scale", nn.initializers.ones, ())
        # A step's number is one more than the updates before it.
        fine = jnp.where(count.value + 1 < self.at, 1.0, 0.0)
        if use_running_average:
            return x
        count.value, var.value = count.value + 1, self.statistic(fine)
        return self.normalize(x, fine, scale)

    def statistic(self, fine):
        return fine

    def normalize(self, x, fine, scale):
        return x


class Gradient(_Flawed):
    """The slope of a square root at 0 is infinite."""

    def normalize(self, x, fine, scale):
        return x + jnp.sqrt(0 * x + fine) - fine


class Statistic(_Flawed):
    def statistic(self, fine):
        return jnp.sqrt(fine - 0.5)


class Square(_Flawed):
    """The gradient of `scale` is finite, but its square is not."""

    def normalize(self, x, fine, scale):
        return x + (scale - jax.lax.stop_gradient(scale)) * jnp.where(fine == 1, 0, 1e25)
