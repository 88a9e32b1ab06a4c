"""Batch renormalization: batch statistics, corrected towards the running ones."""

import jax.numpy as jnp
from jax import lax

from bn_vgg.models.batch_norm import MomentNorm, batch_moments, normalize_by


class BatchRenorm(MomentNorm):
    """Batch renormalization: y = scale * ((x - mean) / sigma * r + d) + bias.

    Ioffe 2017, "Batch Renormalization", algorithm 1. mean and sigma = sqrt(var + epsilon)
    are the batch's. r and d, constants to the gradient, bring the result within bounds to
    what the running statistics would make of it:

      r = clip(sigma / sigma_running, 1 / r_max, r_max)
      d = clip((mean - mean_running) / sigma_running, -d_max, d_max)

    The bounds follow the paper's experiments: up to `warmup_updates` they are 1 and 0,
    which is `FullBatchNorm`; from there they rise linearly. The defaults are the paper's,
    for long training: the recipe's 60 epochs are some 12,000 updates and end near bounds
    of 1.4 and 1.75. `batch_stats` counts the `updates`.

    Attributes:
      r_max, d_max: the bounds in the end; that of 1 / r is r_max, too.
      warmup_updates: updates before the bounds begin to rise.
      r_max_updates, d_max_updates: updates after which they have risen.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup_updates: int = 5000
    r_max_updates: int = 40000
    d_max_updates: int = 25000

    def setup(self):
        """Declares the count of updates."""
        super().setup()
        self.updates = self.variable("batch_stats", "updates", jnp.zeros, (), jnp.float32)

    def _normalize_batch(self, x, running):
        batch = batch_moments(x, tuple(range(x.ndim - 1)), self.axis_name)
        r, d = self._corrections(running, batch, self.updates.value)
        self.updates.value = self.updates.value + 1
        self._move(running, batch)
        return normalize_by(x, batch, self.epsilon) * r + d

    def _corrections(self, running, batch, updates):
        """Computes r and d, in the shape of the moments."""
        r_risen, d_risen = (
            jnp.clip((updates - self.warmup_updates) / max(end - self.warmup_updates, 1), 0, 1)
            for end in (self.r_max_updates, self.d_max_updates)
        )
        r_max, d_max = 1 + (self.r_max - 1) * r_risen, self.d_max * d_risen
        (mean, var), (batch_mean, batch_var) = running, batch
        r = jnp.sqrt((batch_var + self.epsilon) / (var + self.epsilon))
        d = (batch_mean - mean) * lax.rsqrt(var + self.epsilon)
        return lax.stop_gradient((jnp.clip(r, 1 / r_max, r_max), jnp.clip(d, -d_max, d_max)))
