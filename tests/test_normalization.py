"""Both batch normalizations against independent float64 NumPy, and the table of names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.errors import UserError
from bn_vgg.normalization import NORMALIZERS, make_norm_factory

EPSILON, DECAY = 1e-4, 0.995
SHAPE = (6, 5, 7, 3)


def make(norm, dtype=jnp.float32, axis_name=None):
    factory = make_norm_factory(
        norm, decay=DECAY, epsilon=EPSILON, axis_name=axis_name, dtype=dtype
    )
    return factory.make(name=None)


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.5, 2.0, SHAPE)
    grad = rng.normal(size=SHAPE)
    params = {"bias": rng.normal(size=3), "scale": rng.normal(1, 0.3, size=3)}
    stats = {"mean": rng.normal(size=3), "var": rng.uniform(0.5, 2, size=3)}
    return x, grad, params, stats


def reference(norm, x, grad, params, stats, train):
    """Output, gradients of sum(y * grad), and new statistics, in float64."""
    axes, count = (0, 1, 2), np.prod(x.shape[:3])
    mean = x.mean(axes) if train else stats["mean"]
    scale = params["scale"] if norm == "full" else np.ones(3)
    var = (x.var(axes) if train else stats["var"]) if norm == "full" else np.ones(3) - EPSILON
    inverse = 1 / np.sqrt(var + EPSILON)
    normal = (x - mean) * inverse
    y = normal * scale + params["bias"]
    grad_normal = grad * scale
    grad_x = grad_normal * inverse
    if train:
        grad_x -= inverse * grad_normal.sum(axes) / count
        if norm == "full":
            grad_x -= inverse * normal * (grad_normal * normal).sum(axes) / count
    gradients = {"x": grad_x, "bias": grad.sum(axes), "scale": (grad * normal).sum(axes)}
    new = dict(stats)
    if train:
        new["mean"] = DECAY * stats["mean"] + (1 - DECAY) * x.mean(axes)
        new["var"] = DECAY * stats["var"] + (1 - DECAY) * x.var(axes)
    return y, gradients, new


def close(actual, expected):
    """To 1e-5 of the array's largest value, so that entries near 0 do not decide."""
    np.testing.assert_allclose(
        actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), strict=False
    )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", ["mean_only", "full"])
def test_equals_float64(norm, train):
    x, grad, params, stats = data()
    module = make(norm)
    held = ("bias", "mean") if norm == "mean_only" else ("bias", "scale", "mean", "var")
    as_32 = {k: jnp.asarray(v, jnp.float32) for k, v in (params | stats).items() if k in held}
    own_params = {k: v for k, v in as_32.items() if k in params}
    own_stats = {k: v for k, v in as_32.items() if k in stats}

    def loss(own_params, x):
        y, updated = module.apply(
            {"params": own_params, "batch_stats": own_stats},
            x,
            use_running_average=not train,
            mutable=["batch_stats"],
        )
        return jnp.sum(y * jnp.asarray(grad, jnp.float32)), (y, updated["batch_stats"])

    (_, (y, new_stats)), (grad_params, grad_x) = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(own_params, jnp.asarray(x, jnp.float32))

    expected_y, expected_grads, expected_stats = reference(norm, x, grad, params, stats, train)
    close(y, expected_y)
    close(grad_x, expected_grads["x"])
    for name in own_params:
        close(grad_params[name], expected_grads[name])
    assert set(new_stats) == set(own_stats)
    for name in own_stats:
        close(new_stats[name], expected_stats[name])


@pytest.mark.parametrize("norm", NORMALIZERS)
def test_bfloat16_result_and_float32_statistics(norm):
    x = jnp.asarray(data()[0], jnp.bfloat16)
    module = make(norm, jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    y, updated = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert y.shape == x.shape
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, updated)))


@pytest.mark.parametrize("norm", ["mean_only", "full"])
def test_statistics_start_from_0_and_1_and_initializing_does_not_move_them(norm):
    variables = make(norm).init(
        jax.random.key(0), jnp.asarray(data()[0], jnp.float32), use_running_average=False
    )
    stats = variables["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(3))
    if norm == "full":
        np.testing.assert_array_equal(stats["var"], np.ones(3))


@pytest.mark.parametrize("norm", ["mean_only", "full"])
def test_a_split_batch_with_an_axis_name_equals_the_whole(norm):
    x = jnp.asarray(data()[0], jnp.float32)
    whole, split = make(norm), make(norm, axis_name="parts")
    variables = whole.init(jax.random.key(0), x, use_running_average=False)

    def apply(module, x):
        return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    expected_y, expected = apply(whole, x)
    parts = x.reshape(2, 3, *SHAPE[1:])
    y, updated = jax.vmap(lambda part: apply(split, part), axis_name="parts")(parts)
    np.testing.assert_allclose(y.reshape(SHAPE), expected_y, rtol=1e-5, atol=1e-5)
    for name, value in expected["batch_stats"].items():
        np.testing.assert_allclose(updated["batch_stats"][name][0], value, rtol=1e-6, atol=1e-7)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"config.model.norm: no 'batch'; .*none, mean_only, full"):
        make("batch")
