"""RMSProp as the 2016 library wrote it."""

import jax
import jax.numpy as jnp
import optax


def scale_by_floored_rms(decay: float, epsilon: float) -> optax.GradientTransformation:
    """Divides each gradient by max(sqrt(ms), epsilon), ms = decay*ms + (1-decay)*g**2.

    Optax's `scale_by_rms` adds epsilon where this takes the larger of the two; the
    state is the same. ms starts from 0 without bias correction, so the first step is
    1 / sqrt(1 - decay) times the nominal one.
    """

    def init(params):
        return optax.ScaleByRmsState(nu=jax.tree.map(jnp.zeros_like, params))

    def update(gradients, state, params=None):
        del params
        mean_square = optax.tree.update_moment(gradients, state.nu, decay, 2)
        scaled = jax.tree.map(
            lambda g, ms: g / jnp.maximum(jnp.sqrt(ms), epsilon), gradients, mean_square
        )
        return scaled, optax.ScaleByRmsState(nu=mean_square)

    return optax.GradientTransformation(init, update)


def rmsprop(*, learning_rate: float, decay: float, epsilon: float) -> optax.GradientTransformation:
    """The recipe's optimizer; the arguments are the fields of `config.optimizer`."""
    return optax.chain(scale_by_floored_rms(decay, epsilon), optax.scale(-learning_rate))
