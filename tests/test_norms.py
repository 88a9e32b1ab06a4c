"""The shipped normalizers against float64 NumPy, Flax's own, and one another."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.errors import UserError
from bn_vgg.models.batch_norm import BatchRenorm, FullBatchNorm, GhostBatchNorm, MeanOnlyBatchNorm
from bn_vgg.models.filter_response import FilterResponseNorm
from bn_vgg.models.weight_norm import WeightNorm, WeightNormMeanOnly

SHAPE, AXES = (6, 3, 4, 6), (0, 1, 2)
EPSILON, DECAY, GHOST = 1e-4, 0.9, 2
MOMENTS = {"momentum": DECAY, "epsilon": EPSILON}
# After 20 updates r is at most 2 and d at most 1.
RISE = {"r_max": 3.0, "d_max": 4.0, "warmup_updates": 10, "r_max_updates": 30, "d_max_updates": 50}
WITH_MOMENTS = {
    "full": FullBatchNorm(**MOMENTS),
    "full, stdev": FullBatchNorm(**MOMENTS, average="stdev"),
    "ghost": GhostBatchNorm(**MOMENTS, ghost_size=GHOST),
    "ghost, stdev": GhostBatchNorm(**MOMENTS, ghost_size=GHOST, average="stdev"),
    "batch_renorm": BatchRenorm(**MOMENTS, **RISE),
    "batch_renorm, stdev": BatchRenorm(**MOMENTS, **RISE, average="stdev"),
}
BY_BATCH = WITH_MOMENTS | {
    "mean_only": MeanOnlyBatchNorm(DECAY),
    "weight_norm_mean_only": WeightNormMeanOnly(DECAY),
}
BY_EXAMPLE = {
    "group": nn.GroupNorm(num_groups=3, epsilon=EPSILON),
    "layer": nn.LayerNorm(reduction_axes=(1, 2, 3), epsilon=EPSILON),
    "instance": nn.InstanceNorm(epsilon=EPSILON),
    "filter_response": FilterResponseNorm(eps=0.5),
}
ALL = BY_BATCH | BY_EXAMPLE | {"weight_norm": WeightNorm()}
GROUPS = {"group": 3, "layer": 1, "instance": 6}


def draw(shape=SHAPE):
    """An input, far from mean 0 and variance 1, and a gradient of the result; float64."""
    rng = np.random.default_rng(0)
    channels = np.arange(shape[-1])
    return rng.normal(1.5 + channels, 1 + channels, shape), rng.normal(size=shape)


def state_of(module):
    """Parameters and running statistics to start from, all different; float64."""
    rng = np.random.default_rng(1)
    initialize = partial(module.init, **mode(module))
    variables = jax.eval_shape(initialize, jax.random.key(0), jnp.zeros(SHAPE))
    drawn = jax.tree.map(lambda leaf: rng.uniform(0.5, 2, leaf.shape), variables)
    params, stats = drawn["params"], drawn.get("batch_stats", {})
    if "tau" in params:  # so that the threshold takes about half of the results
        params["tau"] = params["bias"] + np.linspace(-0.2, 1, 6)
    if "updates" in stats:
        stats["updates"] = np.asarray(20.0)
    return params, stats


def mode(module, train=True):
    """The arguments of `__call__` besides x."""
    by_batch = any(isinstance(module, type(of_batch)) for of_batch in BY_BATCH.values())
    return {"use_running_average": not train} if by_batch else {}


def corrections(module, x, stats, bounds):
    """r and d of batch renormalization."""
    sigma, r_max, d_max = np.sqrt(stats["var"] + EPSILON), *bounds
    r = np.clip(np.sqrt(x.var(AXES) + EPSILON) / sigma, 1 / r_max, r_max)
    return r, np.clip((x.mean(AXES) - stats["mean"]) / sigma, -d_max, d_max)


def reference(name, params, stats, x, at, train=True, bounds=(2, 1)):
    """The result and the new statistics; constants of the gradient are computed at x = `at`."""
    module, scale, bias = ALL[name], params.get("scale", 1.0), params["bias"]
    if name == "weight_norm":
        return scale * x + bias, {}
    if name == "filter_response":
        y = scale * x / np.sqrt((x**2).mean((1, 2), keepdims=True) + module.eps) + bias
        return np.maximum(y, params["tau"]), {}
    if name in GROUPS:
        grouped = x.reshape(*x.shape[:3], GROUPS[name], -1)
        mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        return scale * ((grouped - mean) / np.sqrt(var + EPSILON)).reshape(x.shape) + bias, {}
    if name == "weight_norm_mean_only":
        x, scale = scale * x, 1.0
    if not train:
        sigma = np.sqrt(stats["var"] + EPSILON) if "var" in stats else 1.0
        return scale * (x - stats["mean"]) / sigma + bias, stats
    parts = np.split(x, len(x) // GHOST) if "ghost" in name else [x]
    power = 0.5 if "stdev" in name else 1.0
    new = {"mean": DECAY * stats["mean"] + (1 - DECAY) * np.mean([p.mean(AXES) for p in parts], 0)}
    normal = np.concatenate([p - p.mean(AXES) for p in parts])
    if "var" in stats:
        spread = np.mean([p.var(AXES) ** power for p in parts], axis=0)
        new["var"] = (DECAY * stats["var"] ** power + (1 - DECAY) * spread) ** (1 / power)
        normal = np.concatenate(
            [(p - p.mean(AXES)) / np.sqrt(p.var(AXES) + EPSILON) for p in parts]
        )
    if "updates" in stats:
        r, d = corrections(module, at, stats, bounds)
        normal, new["updates"] = normal * r + d, stats["updates"] + 1
    return scale * normal + bias, new


def close(actual, expected):
    """To 1e-5 of the array's largest value, so that entries near 0 do not decide."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def run(module, params, stats, x, grad, parts=None, **kwargs):
    """The result, the new statistics, and the gradients of sum(y * grad); with `parts`, mapped."""

    def apply(params, x):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, mutable=["batch_stats"], **kwargs)

    def loss(params, x):
        if parts is None:
            y, updated = apply(params, x)
        else:
            cut = x.reshape(parts, -1, *x.shape[1:])
            y, updated = jax.vmap(apply, (None, 0), axis_name="parts")(params, cut)
        return jnp.sum(y.reshape(x.shape) * grad), (y.reshape(x.shape), updated)

    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, stats, x, grad))
    params, stats, x, grad = arrays
    (_, (y, new)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return y, new.get("batch_stats", {}), gradients


def train(module, *state_x_grad, **kwargs):
    return run(module, *state_x_grad, **mode(module), **kwargs)


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


@pytest.mark.parametrize(
    ("name", "training"), [(name, True) for name in ALL] + [(name, False) for name in BY_BATCH]
)
def test_result_statistics_and_gradients_equal_float64(name, training):
    module, (x, grad) = ALL[name], draw()
    params, stats = state_of(module)
    y, new, (params_grad, x_grad) = run(module, params, stats, x, grad, **mode(module, training))
    expected, new_expected = reference(name, params, stats, x, x, training)
    close(y, expected)
    assert set(new) == set(new_expected)
    for key, value in new_expected.items():
        close(new[key], value)

    def result(params, x_moved):
        return reference(name, params, stats, x_moved, x, training)[0]

    close(x_grad, central_differences(partial(result, params), x, grad))
    assert set(params_grad) == set(params)
    for key, value in params.items():
        of_one = central_differences(lambda v, k=key: result(params | {k: v}, x), value, grad)
        close(params_grad[key], of_one)


@pytest.mark.parametrize("name", BY_BATCH)
def test_a_split_batch_with_an_axis_name_equals_the_whole(name):
    module, (x, grad) = BY_BATCH[name], draw((8, 3, 4, 6))
    params, stats = state_of(module)
    y, new, gradients = train(module, params, stats, x, grad)
    split = train(module.clone(axis_name="parts"), params, stats, x, grad, parts=2)
    close(split[0], y)
    jax.tree.map(close, split[2], gradients)
    jax.tree.map(lambda parts, whole: [close(part, whole) for part in parts], split[1], new)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_result_and_float32_state(name):
    module, x = ALL[name].clone(dtype=jnp.bfloat16), jnp.asarray(draw()[0], jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, **mode(module))
    y, updated = module.apply(variables, x, mutable=["batch_stats"], **mode(module))
    assert y.dtype == jnp.bfloat16
    assert y.shape == x.shape
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, updated)))
    # In float32 the same numbers give the same result, but for its rounding.
    wide = x.astype(jnp.float32)
    exact, expected = module.clone(dtype=jnp.float32).apply(
        variables, wide, mutable=["batch_stats"], **mode(module)
    )
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    jax.tree.map(close, updated, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BY_BATCH | BY_EXAMPLE)
def test_initializing_moves_nothing_and_needs_no_axis(name, training):
    module = ALL[name].clone(axis_name="parts") if name in BY_BATCH else ALL[name]
    x = jnp.asarray(draw()[0], jnp.float32)
    x = x if name == "weight_norm_mean_only" else x[:1]  # its scale starts from the batch
    variables = module.init(jax.random.key(0), x, **mode(module, training))
    start = {"mean": 0, "bias": 0, "tau": 0, "updates": 0, "var": 1, "scale": 1}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if (name, path[-1].key) == ("weight_norm_mean_only", "scale"):
            close(leaf, 1 / x.std(AXES))
        else:
            np.testing.assert_array_equal(leaf, np.full_like(leaf, start[path[-1].key]))


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_a_dead_channel_has_no_nan_in_statistics_and_gradients(name):
    params, stats = state_of(WITH_MOMENTS[name])

    def apply(x):
        variables = {"params": params, "batch_stats": jax.tree.map(jnp.float32, stats)}
        return WITH_MOMENTS[name].apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )

    # The new statistics take part, with a gradient of 0, as they do inside a scan.
    (y, updated), pullback = jax.vjp(apply, jnp.zeros(SHAPE))
    (x_grad,) = pullback((jnp.ones_like(y), jax.tree.map(jnp.zeros_like, updated)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated, x_grad)))


@pytest.mark.parametrize("shared", [{}, {"use_scale": False}, {"use_bias": False}])
def test_full_is_flaxs_batch_norm_bit_for_bit(shared):
    params, stats = jax.tree.map(jnp.float32, state_of(FullBatchNorm()))
    params = {key: value for key, value in params.items() if f"use_{key}" not in shared}
    x = jnp.asarray(draw()[0], jnp.float32)

    def three_steps(cls):
        module, kept, results = cls(**MOMENTS, **shared), stats, []
        for step in range(3):
            y, updated = module.apply(
                {"params": params, "batch_stats": kept}, x + step,
                use_running_average=step == 2, mutable=["batch_stats"],
            )  # fmt: skip
            kept = updated["batch_stats"]
            results.append(y)
        return results, kept

    jax.tree.map(np.testing.assert_array_equal, *map(three_steps, (FullBatchNorm, nn.BatchNorm)))


def test_weight_norm_equals_flaxs_of_a_convolution():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 3, 2, 3)), "scale": rng.uniform(0.5, 2, 3)}
    params |= {"bias": rng.normal(size=3)}
    x, grad = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(2, 6, 7, 3))
    params, x, grad = jax.tree.map(jnp.float32, (params, x, grad))

    def flax(params, x):
        layer = {"kernel": params["kernel"], "bias": params["bias"]}
        names = {"layer_instance": layer, "layer_instance/kernel/scale": params["scale"]}
        return nn.WeightNorm(nn.Conv(3, (3, 3), padding=2)).apply({"params": names}, x)

    def ours(params, x):
        kernel = WeightNorm.reparametrize(params["kernel"])
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return WeightNorm().apply({"params": {k: params[k] for k in ("scale", "bias")}}, y)

    (y, pullback), (expected, flax_pullback) = (jax.vjp(f, params, x) for f in (ours, flax))
    close(y, expected)
    jax.tree.map(close, pullback(grad), flax_pullback(grad))
    # No weights, no direction: 0 by the epsilon, instead of 0 / 0.
    assert (WeightNorm.reparametrize(jnp.zeros((3, 3, 2, 4))) == 0).all()


@pytest.mark.parametrize("updates", [5, 10, 20, 30, 90])
def test_the_bounds_of_batch_renorm_rise_linearly_after_the_warmup(updates):
    """r's to 3 at 30 updates, d's to 4 at 50, both from 10."""
    bounds = {5: (1, 0), 10: (1, 0), 20: (2, 1), 30: (3, 2), 90: (3, 4)}[updates]
    module, (x, grad) = WITH_MOMENTS["batch_renorm"], draw()
    params, stats = state_of(module)
    # Both r and d lie beyond every bound, above in some channels and below in others.
    stats = {
        "mean": np.array([-8.0, -8, -8, 900, 900, 900]),
        "var": np.array([0.01, 0.01, 0.01, 9999, 9999, 9999]),
        "updates": np.asarray(updates),
    }
    y, _, _ = train(module, params, stats, x, grad)
    close(y, reference("batch_renorm", params, stats, x, x, bounds=bounds)[0])


@pytest.mark.parametrize("module", [WeightNorm(), BY_BATCH["weight_norm_mean_only"]])
@pytest.mark.parametrize("training", [True, False])
def test_weight_norm_starts_from_data_with_mean_0_and_variance_1(module, training):
    x = jnp.asarray(draw()[0], jnp.float32).at[..., 0].set(0.3)  # a channel that does not vary
    y, variables = module.init_with_output(jax.random.key(0), x, **mode(module, training))
    np.testing.assert_allclose(y.mean(AXES), np.zeros(6), atol=1e-3)
    np.testing.assert_allclose(y[..., 1:].var(AXES), np.ones(5), rtol=1e-5)
    close(variables["params"]["scale"][1:], 1 / x.std(AXES)[1:])
    assert variables["params"]["scale"][0] <= 1001


@pytest.mark.parametrize("ghost_size", [4, 0, -2, 12])
def test_a_ghost_size_that_does_not_fit_lists_those_that_do(ghost_size):
    module = GhostBatchNorm(ghost_size=ghost_size)
    match = f"model.norm_kwargs.ghost_size: {ghost_size} .*, 6 examples; these do: 1, 2, 3, 6"
    with pytest.raises(UserError, match=match):
        train(module, *state_of(module), *draw())
