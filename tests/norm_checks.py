"""Checks of a normalizer against its formula, written in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.errors import UserError

EPSILON, DECAY = 1e-4, 0.9


def draw(shape, seed=0):
    """An input and a gradient of its result, float64, far enough from 0 mean and 1 variance."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.normal(1.5 + np.arange(channels), 1 + np.arange(channels), shape)
    return x, rng.normal(size=shape)


def draw_vectors(channels, *names, seed=1):
    """Positive vectors (C,), float64, all different."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 2, channels) for name in names}


def as_32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def close(actual, expected):
    """To 1e-5 of the array's largest value, so that entries near 0 do not decide."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def run(module, params, stats, x, grad, parts=None, **kwargs):
    """The result, the new statistics, and the gradients of sum(y * grad).

    With `parts`, the batch is cut in that many, mapped over the axis `parts`.
    """

    def apply(params, x):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, mutable=["batch_stats"], **kwargs)

    def loss(params, x):
        if parts is None:
            y, updated = apply(params, x)
        else:
            cut = x.reshape(parts, -1, *x.shape[1:])
            y, updated = jax.vmap(apply, (None, 0), axis_name="parts")(params, cut)
            y = y.reshape(x.shape)
        return jnp.sum(y * grad), (y, updated.get("batch_stats", {}))

    params, stats, x, grad = as_32((params, stats, x, grad))
    (_, (y, new)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return y, new, gradients


def central_differences(function, value, grad):
    """The gradient of sum(function(value) * grad), float64, an entry at a time."""
    result, step = np.zeros(value.shape), 1e-5 * np.abs(value).max()
    for index in np.ndindex(value.shape):
        moved = [value.copy(), value.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        above, below = (np.sum(function(v) * grad) for v in moved)
        result[index] = (above - below) / (2 * step)
    return result


def check(module, formula, params, stats, new_stats, x, grad, **kwargs):
    """Compares result, gradients and statistics; `formula(params, x)` is NumPy's."""
    y, new, (params_grad, x_grad) = run(module, params, stats, x, grad, **kwargs)
    close(y, formula(params, x))
    close(x_grad, central_differences(lambda x: formula(params, x), x, grad))
    assert set(params_grad) == set(params)
    for name, value in params.items():
        one = central_differences(lambda v, name=name: formula(params | {name: v}, x), value, grad)
        close(params_grad[name], one)
    assert set(new) == set(new_stats)
    for name, value in new_stats.items():
        close(new[name], value)


def check_split(module, split, params, stats, x, grad):
    """Two parts mapped over `parts` equal the whole: result, gradients and statistics."""
    y, new, gradients = run(module, params, stats, x, grad, use_running_average=False)
    y_2, new_2, gradients_2 = run(split, params, stats, x, grad, 2, use_running_average=False)
    close(y_2, y)
    jax.tree.map(close, gradients_2, gradients)
    jax.tree.map(lambda parts, whole: [close(part, whole) for part in parts], new_2, new)


def check_bfloat16(module, **kwargs):
    """bfloat16 in, bfloat16 out; parameters and statistics stay float32, as do their sums."""
    x = jnp.asarray(draw((6, 5, 4, 2))[0], jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, **kwargs)
    y, updated = module.apply(variables, x, mutable=["batch_stats"], **kwargs)
    assert y.dtype == jnp.bfloat16
    assert y.shape == x.shape
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, updated)))
    # The same numbers in float32 give the same, but for the rounding of the result.
    wide, expected = module.apply(
        variables, x.astype(jnp.float32), mutable=["batch_stats"], **kwargs
    )
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=2**-8, atol=1e-6)
    jax.tree.map(close, updated, expected)


def check_dead_channel(module, params, stats, shape):
    """Statistics and gradients have no NaN where a channel does not vary at all."""
    params, stats = as_32((params, stats))

    def apply(x):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    # The new statistics take part, with a gradient of 0, as they do inside a scan.
    (y, updated), pullback = jax.vjp(apply, jnp.zeros(shape))
    (x_grad,) = pullback((jnp.ones_like(y), jax.tree.map(jnp.zeros_like, updated)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated, x_grad)))


def check_unknown_average(module, shape):
    """An unknown `average` is refused with those that there are."""
    with pytest.raises(UserError, match=r"model.stats_average: no 'mean'; .*variance, stdev"):
        module.init(jax.random.key(0), jnp.zeros(shape), use_running_average=True)
