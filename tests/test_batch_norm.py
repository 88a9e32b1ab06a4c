"""The normalizers by batch statistics against float64 NumPy, Flax's own, and one another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.errors import UserError
from bn_vgg.models.batch_norm import FullBatchNorm, GhostBatchNorm, MeanOnlyBatchNorm
from tests.norm_checks import (
    DECAY,
    EPSILON,
    as_32,
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

SHAPE, GHOST = (6, 3, 4, 2), 2
AXES = (0, 1, 2)
AVERAGES = ["variance", "stdev"]
WITH_MOMENTS = [FullBatchNorm, GhostBatchNorm]
ALL = [MeanOnlyBatchNorm, *WITH_MOMENTS]


def make(cls, **fields):
    own = {
        MeanOnlyBatchNorm: {},
        GhostBatchNorm: {"epsilon": EPSILON, "ghost_size": GHOST},
    }.get(cls, {"epsilon": EPSILON})
    return cls(**({"momentum": DECAY} | own | fields))


def state_of(cls):
    """Parameters and running statistics to start from."""
    if cls is MeanOnlyBatchNorm:
        return draw_vectors(2, "bias"), draw_vectors(2, "mean")
    return draw_vectors(2, "scale", "bias"), draw_vectors(2, "mean", "var", seed=2)


def normalized(cls, x):
    """(x - mean) / sigma of a training batch."""
    if cls is MeanOnlyBatchNorm:
        return x - x.mean(AXES)
    if cls is GhostBatchNorm:
        parts = np.split(x, len(x) // GHOST)
        return np.concatenate([normalized(FullBatchNorm, p) for p in parts])
    return (x - x.mean(AXES)) / np.sqrt(x.var(AXES) + EPSILON)


def moved(cls, x, stats, average):
    """The running statistics after a training batch."""
    parts = np.split(x, len(x) // GHOST) if cls is GhostBatchNorm else [x]
    mean = np.mean([p.mean(AXES) for p in parts], axis=0)
    power = 0.5 if average == "stdev" else 1
    spread = np.mean([p.var(AXES) ** power for p in parts], axis=0)
    new = {"mean": DECAY * stats["mean"] + (1 - DECAY) * mean}
    if "var" in stats:
        new["var"] = (DECAY * stats["var"] ** power + (1 - DECAY) * spread) ** (1 / power)
    return new


@pytest.mark.parametrize(
    ("cls", "average"),
    [(MeanOnlyBatchNorm, None), *((c, a) for c in WITH_MOMENTS for a in AVERAGES)],
)
def test_training_equals_float64(cls, average):
    (x, grad), (params, stats) = draw(SHAPE), state_of(cls)
    module = make(cls, **({"average": average} if average else {}))

    def formula(params, x):
        return params.get("scale", 1) * normalized(cls, x) + params["bias"]

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
def test_one_ghost_equals_full(average):
    (x, grad), (params, stats) = draw(SHAPE), state_of(FullBatchNorm)
    modules = (make(FullBatchNorm), make(GhostBatchNorm, ghost_size=SHAPE[0]))
    full, ghost = (
        run(m.clone(average=average), params, stats, x, grad, use_running_average=False)
        for m in modules
    )
    jax.tree.map(close, ghost, full)


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
    names = {"params": {"bias", "scale"}, "batch_stats": {"mean", "var"}}
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
    check_dead_channel(make(cls, average="stdev"), *state_of(cls), SHAPE)


def test_mean_only_takes_the_mean_that_it_is_given():
    (x, grad), (params, stats) = draw(SHAPE), state_of(MeanOnlyBatchNorm)
    given = {"use_running_average": False, "mean_of_x": lambda: jnp.asarray([1.0, 2.0])}
    y, new, _ = run(make(MeanOnlyBatchNorm), params, stats, x, grad, **given)
    close(y, x - np.array([1.0, 2.0]) + params["bias"])
    close(new["mean"], DECAY * stats["mean"] + (1 - DECAY) * np.array([1.0, 2.0]))


@pytest.mark.parametrize("cls", WITH_MOMENTS)
def test_an_unknown_average_lists_the_known_ones(cls):
    check_unknown_average(make(cls, average="mean"), SHAPE)


@pytest.mark.parametrize("ghost_size", [4, 0, -2, 12])
def test_a_ghost_size_that_does_not_fit_lists_those_that_do(ghost_size):
    (x, grad), (params, stats) = draw(SHAPE), state_of(GhostBatchNorm)
    module = make(GhostBatchNorm, ghost_size=ghost_size)
    match = f"model.norm_kwargs.ghost_size: {ghost_size} .*, 6 examples; these do: 1, 2, 3, 6"
    with pytest.raises(UserError, match=match):
        run(module, params, stats, x, grad, use_running_average=False)
