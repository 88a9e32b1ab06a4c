"""The normalizers by each example's statistics against float64 NumPy and one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.errors import UserError
from bn_vgg.models.example_norm import FilterResponseNorm, GroupNorm, InstanceNorm, LayerNorm
from tests.norm_checks import EPSILON, check, check_bfloat16, close, draw, draw_vectors, run

SHAPE = (3, 4, 3, 6)
# Each with the number of groups that it amounts to.
GROUPED = {
    "group": (GroupNorm(num_groups=3, epsilon=EPSILON), 3),
    "layer": (LayerNorm(epsilon=EPSILON), 1),
    "instance": (InstanceNorm(epsilon=EPSILON), 6),
}


@pytest.mark.parametrize("name", GROUPED)
def test_equals_float64(name):
    module, groups = GROUPED[name]
    (x, grad), params = draw(SHAPE), draw_vectors(6, "scale", "bias")

    def formula(params, x):
        grouped = x.reshape(*SHAPE[:3], groups, -1)
        mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        normal = (grouped - mean) / np.sqrt(var + EPSILON)
        return params["scale"] * normal.reshape(x.shape) + params["bias"]

    check(module, formula, params, {}, {}, x, grad)


def test_layer_is_group_with_one_group_and_instance_with_as_many_as_channels():
    (x, grad), params = draw(SHAPE), draw_vectors(6, "scale", "bias")
    for name in ("layer", "instance"):
        module, groups = GROUPED[name]
        same = GroupNorm(num_groups=groups, epsilon=EPSILON)
        results = (run(m, params, {}, x, grad) for m in (module, same))
        jax.tree.map(close, *results)


@pytest.mark.parametrize("channels", [20, 50])
def test_the_default_groups_divide_the_recipes_channels(channels):
    x = jnp.asarray(draw((2, 3, 3, channels))[0], jnp.float32)
    y, _ = GroupNorm().init_with_output(jax.random.key(0), x)
    # Ten groups: those of the first example have mean 0 by themselves.
    means = y[0].reshape(9, 10, channels // 10).mean(axis=(0, 2))
    np.testing.assert_allclose(means, np.zeros(10), atol=1e-5)


@pytest.mark.parametrize("num_groups", [4, 0, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(num_groups):
    match = rf"model.norm_kwargs.num_groups: {num_groups} does not divide .* 6 channels"
    with pytest.raises(UserError, match=match):
        GroupNorm(num_groups=num_groups).init(jax.random.key(0), jnp.zeros(SHAPE))


# Another eps on inputs of size 1; the paper's where nu2 is as small as it.
@pytest.mark.parametrize(("fields", "size"), [({"eps": 0.5}, 1), ({}, 1e-3)])
def test_filter_response_equals_float64(fields, size):
    (x, grad), params = draw(SHAPE), draw_vectors(6, "scale", "bias")
    x *= size
    # Around the results' middle, so that the threshold takes about half of them.
    params["tau"] = params["bias"] + np.linspace(-0.2, 1, 6)
    eps = fields.get("eps", 1e-6)
    taken = []

    def formula(params, x):
        nu2 = np.mean(x**2, axis=(1, 2), keepdims=True)
        y = params["scale"] * x / np.sqrt(nu2 + eps) + params["bias"]
        taken.append(np.mean(y < params["tau"]))
        return np.maximum(y, params["tau"])

    check(FilterResponseNorm(**fields), formula, params, {}, {}, x, grad)
    assert 0.2 < taken[0] < 0.8


def test_filter_response_starts_as_a_relu_behind_a_division():
    x = jnp.asarray(draw(SHAPE)[0], jnp.float32)
    y, variables = FilterResponseNorm().init_with_output(jax.random.key(0), x)
    start = {"scale": np.ones(6), "bias": np.zeros(6), "tau": np.zeros(6)}
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": start})
    np.testing.assert_array_equal(y == 0, x <= 0)


@pytest.mark.parametrize(
    "module", [GroupNorm(num_groups=2), LayerNorm(), InstanceNorm(), FilterResponseNorm()]
)
def test_bfloat16_result_and_float32_parameters(module):
    check_bfloat16(module)


@pytest.mark.parametrize(
    "module", [GroupNorm(num_groups=3), LayerNorm(), InstanceNorm(), FilterResponseNorm()]
)
def test_an_example_does_not_depend_on_the_others(module):
    x = jnp.asarray(draw(SHAPE)[0], jnp.float32)
    y, variables = module.init_with_output(jax.random.key(0), x)
    close(module.apply(variables, x[1:2]), y[1:2])
