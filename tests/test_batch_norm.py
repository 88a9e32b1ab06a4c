"""The normalizers by batch statistics against float64 NumPy, Flax's own, and one another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.batch_norm import BatchRenorm, FullBatchNorm, GhostBatchNorm, MeanOnlyBatchNorm
from bn_vgg.errors import UserError
from tests.norm_checks import (
    DECAY,
    EPSILON,
    as_32,
    check,
    check_bfloat16,
    check_split,
    close,
    draw,
    draw_vectors,
    run,
)

SHAPE, GHOST = (6, 3, 4, 2), 2
AXES = (0, 1, 2)
# After 20 updates r is at most 2 and d at most 1. Of the two channels drawn, both lie
# below those bounds in the one and beyond them in the other.
RISE = {"warmup_updates": 10, "r_max_updates": 30, "d_max_updates": 50}
RENORM = {"r_max": 3.0, "d_max": 4.0} | RISE
# The bounds of r and d after so many updates, by hand.
BOUNDS = {5: (1, 0), 10: (1, 0), 20: (2, 1), 30: (3, 2), 90: (3, 4)}
AVERAGES = ["variance", "stdev"]
WITH_MOMENTS = [FullBatchNorm, GhostBatchNorm, BatchRenorm]
ALL = [MeanOnlyBatchNorm, *WITH_MOMENTS]


def make(cls, **fields):
    own = {
        MeanOnlyBatchNorm: {},
        GhostBatchNorm: {"epsilon": EPSILON, "ghost_size": GHOST},
        BatchRenorm: {"epsilon": EPSILON} | RENORM,
    }.get(cls, {"epsilon": EPSILON})
    return cls(**({"momentum": DECAY} | own | fields))


def state_of(cls, updates=20.0):
    """Parameters and running statistics to start from."""
    if cls is MeanOnlyBatchNorm:
        return draw_vectors(2, "bias"), draw_vectors(2, "mean")
    stats = draw_vectors(2, "mean", "var", seed=2)
    if cls is BatchRenorm:
        stats["updates"] = np.asarray(updates)
    return draw_vectors(2, "scale", "bias"), stats


def normalized(cls, x, stats, renorm):
    """(x - mean) / sigma of a training batch, with renorm's r and d given."""
    if cls is MeanOnlyBatchNorm:
        return x - x.mean(AXES)
    if cls is GhostBatchNorm:
        parts = np.split(x, len(x) // GHOST)
        return np.concatenate([normalized(FullBatchNorm, p, stats, None) for p in parts])
    y = (x - x.mean(AXES)) / np.sqrt(x.var(AXES) + EPSILON)
    return y * renorm[0] + renorm[1] if cls is BatchRenorm else y


def renorm_of(x, stats, bounds):
    r_max, d_max = bounds
    sigma = np.sqrt(stats["var"] + EPSILON)
    r = np.clip(np.sqrt(x.var(AXES) + EPSILON) / sigma, 1 / r_max, r_max)
    return r, np.clip((x.mean(AXES) - stats["mean"]) / sigma, -d_max, d_max)


def moved(cls, x, stats, average):
    """The running statistics after a training batch."""
    parts = np.split(x, len(x) // GHOST) if cls is GhostBatchNorm else [x]
    mean = np.mean([p.mean(AXES) for p in parts], axis=0)
    power = 0.5 if average == "stdev" else 1
    spread = np.mean([p.var(AXES) ** power for p in parts], axis=0)
    new = {"mean": DECAY * stats["mean"] + (1 - DECAY) * mean}
    if "var" in stats:
        new["var"] = (DECAY * stats["var"] ** power + (1 - DECAY) * spread) ** (1 / power)
    if "updates" in stats:
        new["updates"] = stats["updates"] + 1
    return new


@pytest.mark.parametrize(
    ("cls", "average"),
    [(MeanOnlyBatchNorm, None), *((c, a) for c in WITH_MOMENTS for a in AVERAGES)],
)
def test_training_equals_float64(cls, average):
    (x, grad), (params, stats) = draw(SHAPE), state_of(cls)
    # The derivative takes r and d as constants: they are computed once, from the x given.
    renorm = renorm_of(x, stats, BOUNDS[20]) if cls is BatchRenorm else None
    module = make(cls, **({"average": average} if average else {}))

    def formula(params, x):
        return params.get("scale", 1) * normalized(cls, x, stats, renorm) + params["bias"]

    new = moved(cls, x, stats, average)
    check(module, formula, params, stats, new, x, grad, use_running_average=False)


@pytest.mark.parametrize("cls", ALL)
def test_evaluation_equals_float64_and_moves_nothing(cls):
    (x, grad), (params, stats) = draw(SHAPE), state_of(cls)

    def formula(params, x):
        sigma = np.sqrt(stats["var"] + EPSILON) if "var" in stats else 1
        return params.get("scale", 1) * (x - stats["mean"]) / sigma + params["bias"]

    # Five examples: not a multiple of the ghost size, which only training needs.
    check(make(cls), formula, params, stats, stats, x[:5], grad[:5], use_running_average=True)


@pytest.mark.parametrize("updates", BOUNDS)
def test_renorm_bounds_rise_linearly_after_the_warmup(updates):
    (x, grad), (params, stats) = draw(SHAPE), state_of(BatchRenorm, updates)
    # Both r and d lie above every upper bound in one channel, below every lower in the other.
    stats |= {"mean": np.array([-8.0, 60.0]), "var": np.array([0.01, 99.0])}
    y, _, _ = run(make(BatchRenorm), params, stats, x, grad, use_running_average=False)
    renorm = renorm_of(x, stats, BOUNDS[updates])
    close(y, params["scale"] * normalized(BatchRenorm, x, stats, renorm) + params["bias"])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shared", [{}, {"use_scale": False}, {"use_bias": False}])
def test_full_is_flax_batch_norm_bit_for_bit(jit, shared):
    params, stats = as_32(state_of(FullBatchNorm))
    params = {k: v for k, v in params.items() if f"use_{k}" not in shared}
    x = jnp.asarray(draw(SHAPE)[0], jnp.float32)

    def three_steps(cls):
        module, kept, results = make(cls, **shared), stats, []
        for step in range(3):
            variables = {"params": params, "batch_stats": kept}
            y, updated = module.apply(
                variables, x + step, use_running_average=step == 2, mutable=["batch_stats"]
            )
            kept = updated["batch_stats"]
            results.append(y)
        return results, kept

    ours, flax = (
        (jax.jit(three_steps, static_argnums=0) if jit else three_steps)(cls)
        for cls in (FullBatchNorm, nn.BatchNorm)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    "other",
    [
        GhostBatchNorm(DECAY, EPSILON, ghost_size=SHAPE[0]),
        BatchRenorm(DECAY, EPSILON),
        BatchRenorm(DECAY, EPSILON, warmup_updates=0, r_max=1.0, d_max=0.0),
    ],
    ids=["one ghost", "warm-up", "bounds of 1 and 0"],
)
def test_special_cases_equal_full(other, average):
    (x, grad), (params, stats) = draw(SHAPE), state_of(FullBatchNorm)
    own = {"updates": np.asarray(20.0)} if isinstance(other, BatchRenorm) else {}
    full = make(FullBatchNorm, average=average)
    other = other.clone(average=average)
    y, new, gradients = run(full, params, stats, x, grad, use_running_average=False)
    y_2, new_2, gradients_2 = run(other, params, stats | own, x, grad, use_running_average=False)
    close(y_2, y)
    jax.tree.map(close, gradients_2, gradients)
    for name in stats:
        close(new_2[name], new[name])


@pytest.mark.parametrize("cls", ALL)
def test_a_split_batch_with_an_axis_name_equals_the_whole(cls):
    (x, grad), (params, stats) = draw((8, 3, 4, 2)), state_of(cls)
    check_split(make(cls), make(cls, axis_name="parts"), params, stats, x, grad)


@pytest.mark.parametrize("cls", ALL)
def test_bfloat16_result_and_float32_state(cls):
    check_bfloat16(make(cls), use_running_average=False)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("cls", ALL)
def test_initializing_moves_nothing_and_needs_no_axis(cls, train):
    x = jnp.asarray(draw(SHAPE)[0], jnp.float32)[:1]
    module = make(cls, axis_name="parts")
    variables = module.init(jax.random.key(0), x, use_running_average=not train)
    start = {"mean": np.zeros(2), "bias": np.zeros(2)}
    if cls is not MeanOnlyBatchNorm:
        start |= {"var": np.ones(2), "scale": np.ones(2)}
    if cls is BatchRenorm:
        start["updates"] = np.zeros(())
    names = {"params": {"bias", "scale"}, "batch_stats": {"mean", "var", "updates"}}
    expected = {key: {n: start[n] for n in own if n in start} for key, own in names.items()}
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize("cls", ALL)
def test_momentum_may_be_traced(cls):
    (x, grad), (params, stats) = draw(SHAPE), state_of(cls)

    def step(momentum):
        return run(make(cls, momentum=momentum), params, stats, x, grad, use_running_average=False)

    jax.tree.map(close, jax.jit(step)(jnp.float32(DECAY)), step(DECAY))


@pytest.mark.parametrize("cls", WITH_MOMENTS)
def test_a_dead_channel_has_no_nan_in_statistics_and_gradients(cls):
    params, stats = as_32(state_of(cls))
    module = make(cls, average="stdev")

    def apply(x):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    # The new statistics take part, with a gradient of 0, as they do inside a scan.
    (y, updated), pullback = jax.vjp(apply, jnp.zeros(SHAPE))
    (x_grad,) = pullback((jnp.ones_like(y), jax.tree.map(jnp.zeros_like, updated)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated, x_grad)))


def test_mean_only_takes_the_mean_that_it_is_given():
    (x, grad), (params, stats) = draw(SHAPE), state_of(MeanOnlyBatchNorm)
    given = {"use_running_average": False, "mean_of_x": lambda: jnp.asarray([1.0, 2.0])}
    y, new, _ = run(make(MeanOnlyBatchNorm), params, stats, x, grad, **given)
    close(y, x - np.array([1.0, 2.0]) + params["bias"])
    close(new["mean"], DECAY * stats["mean"] + (1 - DECAY) * np.array([1.0, 2.0]))


@pytest.mark.parametrize("cls", WITH_MOMENTS)
def test_an_unknown_average_lists_the_known_ones(cls):
    x = jnp.zeros(SHAPE)
    with pytest.raises(UserError, match=r"model.stats_average: no 'mean'; .*variance, stdev"):
        make(cls, average="mean").init(jax.random.key(0), x, use_running_average=True)


@pytest.mark.parametrize("ghost_size", [4, 0, -2, 12])
def test_a_ghost_size_that_does_not_fit_lists_those_that_do(ghost_size):
    (x, grad), (params, stats) = draw(SHAPE), state_of(GhostBatchNorm)
    module = make(GhostBatchNorm, ghost_size=ghost_size)
    match = f"model.norm_kwargs.ghost_size: {ghost_size} .*, 6 examples; these do: 1, 2, 3, 6"
    with pytest.raises(UserError, match=match):
        run(module, params, stats, x, grad, use_running_average=False)
