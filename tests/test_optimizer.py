"""RMSProp against its formula in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_vgg.optimizer import rmsprop


@pytest.mark.parametrize(("bias_correction", "first"), [(False, 31.6228), (True, 1.0)])
def test_equals_the_formula_step_by_step(bias_correction, first):
    """The first update is 1 / sqrt(1 - 0.999) times the rate without bias correction."""
    rng = np.random.default_rng(0)
    learning_rate, decay, epsilon = 3e-4, 0.999, 1e-5
    optimizer = rmsprop(
        learning_rate=learning_rate, decay=decay, epsilon=epsilon, bias_correction=bias_correction
    )
    expected = rng.normal(size=5)
    params = {"w": jnp.asarray(expected, jnp.float32)}
    state = optimizer.init(params)
    mean_square = np.zeros(5)
    for t in range(1, 51):
        # The last gradient is so small that epsilon takes over.
        gradient = rng.normal(size=5) * [1, 10, 0.1, 1e-3, 1e-6]
        mean_square = decay * mean_square + (1 - decay) * gradient**2
        corrected = mean_square / (1 - decay**t) if bias_correction else mean_square
        expected -= learning_rate * gradient / np.maximum(np.sqrt(corrected), epsilon)
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state)
        params = optax.apply_updates(params, updates)
        if t == 1:
            np.testing.assert_allclose(np.abs(updates["w"][:3]), 3e-4 * first, rtol=1e-4)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-7)
