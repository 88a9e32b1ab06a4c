"""RMSProp against the recipe's formula in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_vgg.training.optimizer import rmsprop


def test_equals_the_recipe_step_by_step():
    rng = np.random.default_rng(0)
    learning_rate, decay, epsilon = 3e-4, 0.999, 1e-5
    optimizer = rmsprop(learning_rate=learning_rate, decay=decay, epsilon=epsilon)
    expected = rng.normal(size=5)
    params = {"w": jnp.asarray(expected, jnp.float32)}
    state = optimizer.init(params)
    mean_square = np.zeros(5)
    for _ in range(50):
        # The last gradient is so small that epsilon takes over.
        gradient = rng.normal(size=5) * [1, 10, 0.1, 1e-3, 1e-6]
        mean_square = decay * mean_square + (1 - decay) * gradient**2
        expected -= learning_rate * gradient / np.maximum(np.sqrt(mean_square), epsilon)
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-7)


def test_the_first_step_is_31_6_times_the_nominal_one():
    """1 / sqrt(1 - 0.999): no bias correction, as in the post's recipe."""
    optimizer = rmsprop(learning_rate=3e-4, decay=0.999, epsilon=1e-5)
    params = {"w": jnp.zeros(1)}
    updates, _ = optimizer.update({"w": jnp.full(1, 2.0)}, optimizer.init(params))
    assert float(updates["w"][0]) == pytest.approx(-3e-4 * 31.6228, rel=1e-4)
