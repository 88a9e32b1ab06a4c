"""Max pooling against Flax's, ties and gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_vgg.models.pooling import max_pool_2x2


def test_a_last_odd_row_and_column_are_dropped():
    x = jnp.arange(15.0).reshape(1, 5, 3, 1)
    np.testing.assert_array_equal(max_pool_2x2(x)[0, :, :, 0], [[4], [10]])


@settings(max_examples=20, deadline=None)
@given(
    # Few shapes: each compiles anew.
    shape=st.sampled_from([(1, 2, 2, 1), (2, 5, 8, 3), (3, 4, 7, 2), (2, 9, 9, 1)]),
    values=st.sampled_from([2, 1000]),  # two values: ties nearly everywhere
    seed=st.integers(0, 2**32 - 1),
)
def test_values_and_gradients_are_those_of_flax(shape, values, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.integers(-values, values, shape), jnp.float32)
    ours, pullback = jax.vjp(max_pool_2x2, x)
    theirs, their_pullback = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(ours, theirs)
    grad = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    np.testing.assert_array_equal(pullback(grad)[0], their_pullback(grad)[0])
