"""Batch renormalization against float64 NumPy, and where it equals batch normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bn_vgg.models.batch_renorm import BatchRenorm

from bn_vgg.models.batch_norm import FullBatchNorm
from tests.norm_checks import (
    DECAY,
    EPSILON,
    check,
    check_bfloat16,
    check_dead_channel,
    check_split,
    check_unknown_average,
    close,
    draw,
    draw_vectors,
    run,
)

SHAPE = (6, 3, 4, 2)
AXES = (0, 1, 2)
# After 20 updates r is at most 2 and d at most 1. Of the two channels drawn, both lie
# below those bounds in the one and beyond them in the other.
RISE = {"warmup_updates": 10, "r_max_updates": 30, "d_max_updates": 50}
# The bounds of r and d after so many updates, by hand.
BOUNDS = {5: (1, 0), 10: (1, 0), 20: (2, 1), 30: (3, 2), 90: (3, 4)}
AVERAGES = ["variance", "stdev"]


def make(**fields):
    own = {"momentum": DECAY, "epsilon": EPSILON, "r_max": 3.0, "d_max": 4.0} | RISE
    return BatchRenorm(**(own | fields))


def state(updates=20.0):
    """Parameters and running statistics to start from."""
    stats = draw_vectors(2, "mean", "var", seed=2) | {"updates": np.asarray(updates)}
    return draw_vectors(2, "scale", "bias"), stats


def corrections(x, stats, bounds):
    """r and d of a training batch."""
    r_max, d_max = bounds
    sigma = np.sqrt(stats["var"] + EPSILON)
    r = np.clip(np.sqrt(x.var(AXES) + EPSILON) / sigma, 1 / r_max, r_max)
    return r, np.clip((x.mean(AXES) - stats["mean"]) / sigma, -d_max, d_max)


def renormalized(params, x, r, d):
    y = (x - x.mean(AXES)) / np.sqrt(x.var(AXES) + EPSILON) * r + d
    return params["scale"] * y + params["bias"]


def moved(x, stats, average):
    """The running statistics after a training batch."""
    power = 0.5 if average == "stdev" else 1
    spread = DECAY * stats["var"] ** power + (1 - DECAY) * x.var(AXES) ** power
    mean = DECAY * stats["mean"] + (1 - DECAY) * x.mean(AXES)
    return {"mean": mean, "var": spread ** (1 / power), "updates": stats["updates"] + 1}


@pytest.mark.parametrize("average", AVERAGES)
def test_training_equals_float64(average):
    (x, grad), (params, stats) = draw(SHAPE), state()
    # The derivative takes r and d as constants: they are computed once, from the x given.
    r, d = corrections(x, stats, BOUNDS[20])

    def formula(params, x):
        return renormalized(params, x, r, d)

    module, new = make(average=average), moved(x, stats, average)
    check(module, formula, params, stats, new, x, grad, use_running_average=False)


def test_evaluation_equals_float64_and_moves_nothing():
    (x, grad), (params, stats) = draw(SHAPE), state()

    def formula(params, x):
        y = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
        return params["scale"] * y + params["bias"]

    check(make(), formula, params, stats, stats, x, grad, use_running_average=True)


@pytest.mark.parametrize("updates", BOUNDS)
def test_the_bounds_rise_linearly_after_the_warmup(updates):
    (x, grad), (params, stats) = draw(SHAPE), state(updates)
    # Both r and d lie above every upper bound in one channel, below every lower in the other.
    stats |= {"mean": np.array([-8.0, 60.0]), "var": np.array([0.01, 99.0])}
    y, _, _ = run(make(), params, stats, x, grad, use_running_average=False)
    close(y, renormalized(params, x, *corrections(x, stats, BOUNDS[updates])))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    "fields",
    [{}, {"warmup_updates": 0, "r_max": 1.0, "d_max": 0.0}],
    ids=["warm-up", "bounds of 1 and 0"],
)
def test_special_cases_equal_full(fields, average):
    (x, grad), (params, stats) = draw(SHAPE), state()
    full = FullBatchNorm(DECAY, EPSILON, average=average)
    renorm = BatchRenorm(DECAY, EPSILON, average=average, **fields)
    kept = {name: stats[name] for name in ("mean", "var")}
    y, new, gradients = run(full, params, kept, x, grad, use_running_average=False)
    y_2, new_2, gradients_2 = run(renorm, params, stats, x, grad, use_running_average=False)
    close(y_2, y)
    jax.tree.map(close, gradients_2, gradients)
    for name in kept:
        close(new_2[name], new[name])


def test_a_split_batch_with_an_axis_name_equals_the_whole():
    (x, grad), (params, stats) = draw((8, 3, 4, 2)), state()
    check_split(make(), make(axis_name="parts"), params, stats, x, grad)


def test_bfloat16_result_and_float32_state():
    check_bfloat16(make(), use_running_average=False)


@pytest.mark.parametrize("train", [True, False])
def test_initializing_moves_nothing_and_needs_no_axis(train):
    x = jnp.asarray(draw(SHAPE)[0], jnp.float32)[:1]
    module = make(axis_name="parts")
    variables = module.init(jax.random.key(0), x, use_running_average=not train)
    expected = {
        "params": {"scale": np.ones(2), "bias": np.zeros(2)},
        "batch_stats": {"mean": np.zeros(2), "var": np.ones(2), "updates": np.zeros(())},
    }
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_momentum_may_be_traced():
    (x, grad), (params, stats) = draw(SHAPE), state()

    def step(momentum):
        return run(make(momentum=momentum), params, stats, x, grad, use_running_average=False)

    jax.tree.map(close, jax.jit(step)(jnp.float32(DECAY)), step(DECAY))


def test_a_dead_channel_has_no_nan_in_statistics_and_gradients():
    check_dead_channel(make(average="stdev"), *state(), SHAPE)


def test_an_unknown_average_lists_the_known_ones():
    check_unknown_average(make(average="mean"), SHAPE)
