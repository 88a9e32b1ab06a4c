"""Weight normalization against float64 NumPy, Flax's own, and what it starts from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.models.batch_norm import mean_over_batch
from bn_vgg.models.weight_norm import WeightNorm, WeightNormMeanOnly
from tests.norm_checks import (
    DECAY,
    as_32,
    check,
    check_bfloat16,
    check_split,
    close,
    draw,
    draw_vectors,
    run,
)

SHAPE = (6, 3, 4, 2)
AXES = (0, 1, 2)
MEAN_ONLY = WeightNormMeanOnly(momentum=DECAY)


def state():
    return draw_vectors(2, "scale", "bias"), draw_vectors(2, "mean", seed=2)


def test_equals_float64():
    (x, grad), (params, _) = draw(SHAPE), state()

    def formula(params, x):
        return params["scale"] * x + params["bias"]

    check(WeightNorm(), formula, params, {}, {}, x, grad)


@pytest.mark.parametrize("train", [True, False])
def test_mean_only_equals_float64(train):
    (x, grad), (params, stats) = draw(SHAPE), state()

    def formula(params, x):
        t = params["scale"] * x
        return t - (t.mean(AXES) if train else stats["mean"]) + params["bias"]

    mean = (params["scale"] * x).mean(AXES)
    new = {"mean": DECAY * stats["mean"] + (1 - DECAY) * mean} if train else stats
    check(MEAN_ONLY, formula, params, stats, new, x, grad, use_running_average=not train)


@pytest.mark.parametrize("module", [WeightNorm(), MEAN_ONLY])
def test_kernel_is_of_norm_1_for_each_output(module):
    kernel, grad = draw((3, 3, 2, 4))

    def formula(kernel):
        return kernel / np.sqrt(np.sum(kernel**2, axis=AXES))

    result, pullback = jax.vjp(module.kernel, jnp.asarray(kernel, jnp.float32))
    close(result, formula(kernel))
    (kernel_grad,) = pullback(jnp.asarray(grad, jnp.float32))
    # By hand: what of the gradient is across v, over ||v||.
    unit, norm = formula(kernel), np.sqrt(np.sum(kernel**2, axis=AXES))
    close(kernel_grad, (grad - unit * np.sum(grad * unit, axis=AXES)) / norm)
    # No weights, no direction: 0 by the epsilon, instead of 0 / 0.
    assert (module.kernel(jnp.zeros((3, 3, 2, 4))) == 0).all()


def test_equals_flax_weight_norm_of_a_convolution():
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(2, 6, 7, 3))
    kernel, vectors = rng.normal(size=(3, 3, 2, 3)), draw_vectors(3, "scale", "bias")
    params, x, grad = as_32((vectors | {"kernel": kernel}, x, grad))
    flax_norm = nn.WeightNorm(nn.Conv(3, (3, 3), padding=2))

    def flax(params, x):
        layer = {"kernel": params["kernel"], "bias": params["bias"]}
        names = {"layer_instance": layer, "layer_instance/kernel/scale": params["scale"]}
        return flax_norm.apply({"params": names}, x)

    def ours(params, x):
        own = {"params": {name: params[name] for name in ("scale", "bias")}}
        kernel = WeightNorm().kernel(params["kernel"])
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return WeightNorm().apply(own, y)

    (y, pullback), (expected, flax_pullback) = (jax.vjp(f, params, x) for f in (ours, flax))
    close(y, expected)
    jax.tree.map(close, pullback(grad), flax_pullback(grad))


@pytest.mark.parametrize(
    ("module", "kwargs"),
    [
        (WeightNorm(), {}),
        (MEAN_ONLY, {"use_running_average": True}),
        (MEAN_ONLY, {"use_running_average": False}),
        (MEAN_ONLY.clone(axis_name="parts"), {"use_running_average": False}),
    ],
)
def test_starts_from_data_with_mean_0_and_variance_1(module, kwargs):
    x = draw(SHAPE)[0]
    y, variables = module.init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32), **kwargs)
    np.testing.assert_allclose(y.mean(AXES), np.zeros(2), atol=1e-5)
    np.testing.assert_allclose(y.var(AXES), np.ones(2), rtol=1e-5)
    close(variables["params"]["scale"], 1 / x.std(AXES))
    if kwargs:
        np.testing.assert_array_equal(variables["params"]["bias"], np.zeros(2))
        np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(2))
    else:
        close(variables["params"]["bias"], -x.mean(AXES) / x.std(AXES))


@pytest.mark.parametrize(("module", "args"), [(WeightNorm(), ()), (MEAN_ONLY, (False,))])
def test_a_channel_that_does_not_vary_starts_with_a_moderate_scale(module, args):
    x = jnp.stack([jnp.full(SHAPE[:3], 0.3), jnp.zeros(SHAPE[:3])], axis=-1)
    y, variables = module.init_with_output(jax.random.key(0), x, *args)
    assert variables["params"]["scale"].max() <= 1001
    np.testing.assert_allclose(y, np.zeros(SHAPE), atol=1e-3)


def test_mean_only_takes_the_mean_of_its_input_that_it_is_given():
    (x, grad), (params, stats) = draw(SHAPE), state()
    given = {"use_running_average": False, "mean_of_x": lambda: jnp.asarray([1.0, 2.0])}
    y, new, (params_grad, x_grad) = run(MEAN_ONLY, params, stats, x, grad, **given)
    other = np.array([1.0, 2.0])
    close(y, params["scale"] * (x - other) + params["bias"])
    close(new["mean"], DECAY * stats["mean"] + (1 - DECAY) * params["scale"] * other)
    close(params_grad["scale"], ((x - other) * grad).sum(AXES))
    close(x_grad, params["scale"] * grad)


def test_mean_only_is_differentiated_through_the_mean_that_it_is_given():
    (x, grad), (params, stats) = draw(SHAPE), state()

    class Given(nn.Module):
        """Computes the mean from `x`, as the convolution does from its own input."""

        @nn.compact
        def __call__(self, x, **kwargs):
            inner = WeightNormMeanOnly(DECAY)
            nn.share_scope(self, inner)
            return inner(x, mean_of_x=lambda: mean_over_batch(x), **kwargs)

    results = (
        run(module, params, stats, x, grad, use_running_average=False)
        for module in (Given(), MEAN_ONLY)
    )
    jax.tree.map(close, *results)


def test_a_split_batch_with_an_axis_name_equals_the_whole():
    (x, grad), (params, stats) = draw(SHAPE), state()
    check_split(MEAN_ONLY, MEAN_ONLY.clone(axis_name="parts"), params, stats, x, grad)


@pytest.mark.parametrize(
    ("module", "kwargs"), [(WeightNorm(), {}), (MEAN_ONLY, {"use_running_average": False})]
)
def test_bfloat16_result_and_float32_state(module, kwargs):
    check_bfloat16(module, **kwargs)
