"""RMSProp as the 2016 library wrote it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ScaleByRmsWithCountState(NamedTuple):
    """`optax.ScaleByRmsState` and the number of updates done, int32."""

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of that name
    nu: Any


def scale_by_floored_rms(
    decay: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
    """Divides each gradient by max(sqrt(ms), epsilon), ms = decay*ms + (1-decay)*g**2.

    Optax's `scale_by_rms` adds epsilon where this takes the larger of the two.

    Args:
      decay: weight of the old mean square, which starts from 0.
      epsilon: the least that a gradient is divided by.
      bias_correction: whether to divide ms by 1 - decay**t at update t (Kingma and Ba 2015,
        section 3). Without it the first update is 1 / sqrt(1 - decay) times the nominal one.
    """

    def init(params):
        nu = jax.tree.map(jnp.zeros_like, params)
        if bias_correction:
            return ScaleByRmsWithCountState(count=jnp.zeros((), jnp.int32), nu=nu)
        return optax.ScaleByRmsState(nu=nu)

    def update(gradients, state, params=None):
        del params
        nu = optax.tree.update_moment(gradients, state.nu, decay, 2)
        mean_square, state = nu, state._replace(nu=nu)
        if bias_correction:
            state = state._replace(count=optax.safe_increment(state.count))
            mean_square = optax.tree.bias_correction(nu, decay, state.count)
        scaled = jax.tree.map(
            lambda g, ms: g / jnp.maximum(jnp.sqrt(ms), epsilon), gradients, mean_square
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


def rmsprop(
    *, learning_rate: float, decay: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
    """The recipe's optimizer; the arguments are the fields of `config.optimizer`."""
    scale = scale_by_floored_rms(decay, epsilon, bias_correction)
    return optax.chain(scale, optax.scale(-learning_rate))
