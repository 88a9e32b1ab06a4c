"""RMSProp against its formula in float64; the other optimizers, and schedules, by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_vgg.errors import UserError
from bn_vgg.optimizer import OPTIMIZERS, find_params_ema, make_optimizer, make_schedule, rmsprop
from configs import default


@pytest.mark.parametrize(("bias_correction", "first"), [(False, 31.6228), (True, 1.0)])
def test_equals_the_formula_step_by_step(bias_correction, first):
    """The first update is 1 / sqrt(1 - 0.999) times the rate without bias correction."""
    rng = np.random.default_rng(0)
    learning_rate, decay, epsilon = 3e-4, 0.999, 1e-5
    optimizer = rmsprop(
        learning_rate=learning_rate, decay=decay, epsilon=epsilon, bias_correction=bias_correction
    )
    expected = rng.normal(size=5)
    params = {"w": jnp.asarray(expected, jnp.float32)}
    state = optimizer.init(params)
    mean_square = np.zeros(5)
    for t in range(1, 51):
        # The last gradient is so small that epsilon takes over.
        gradient = rng.normal(size=5) * [1, 10, 0.1, 1e-3, 1e-6]
        mean_square = decay * mean_square + (1 - decay) * gradient**2
        corrected = mean_square / (1 - decay**t) if bias_correction else mean_square
        expected -= learning_rate * gradient / np.maximum(np.sqrt(corrected), epsilon)
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state)
        params = optax.apply_updates(params, updates)
        if t == 1:
            np.testing.assert_allclose(np.abs(updates["w"][:3]), 3e-4 * first, rtol=1e-4)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-7)


def config_of(**changes):
    config = default.get_config().to_dict()
    config["num_epochs"] = 10
    for group, fields in changes.items():
        config[group] |= fields
    return config


@pytest.mark.parametrize("name", [*OPTIMIZERS, "optax:lion"])
def test_each_descends_and_decays_kernels_alone(name):
    """Without a gradient a kernel shrinks by learning_rate * weight_decay, if at all."""
    settings = {"name": name, "learning_rate": 0.02, "weight_decay": 0.5}
    optimizer = make_optimizer(config_of(optimizer=settings), 10)
    start = {"kernel": jnp.full((3, 3, 4, 8), 2.0), "bias": jnp.full(8, 2.0)}

    def train(gradient, steps):
        params, state = start, optimizer.init(start)
        for _ in range(steps):
            updates, state = optimizer.update(jax.tree.map(gradient, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    after = train(jnp.zeros_like, 1)
    np.testing.assert_array_equal(after["bias"], 2.0)
    # LAMB scales by its trust ratio: ||p|| / ||0.5 p|| times 0.5 p is p.
    np.testing.assert_allclose(after["kernel"], 2 * (0.98 if name == "lamb" else 0.99), rtol=1e-5)
    after = train(jax.grad(lambda x: (x**2).sum() / 2), 20)
    assert max(jnp.abs(x).max() for x in after.values()) < 2


def test_clipping_bounds_the_norm_of_all_gradients():
    settings = {"name": "sgd", "learning_rate": 1.0, "clip_norm": 0.5}
    optimizer = make_optimizer(config_of(optimizer=settings), 10)
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert optax.tree.norm(updates) == pytest.approx(0.5)


def test_the_average_of_the_weights_and_the_same_updates():
    settings = {"name": "sgd", "learning_rate": 0.1}
    plain = make_optimizer(config_of(optimizer=settings), 10)
    optimizer = make_optimizer(config_of(optimizer=settings | {"average_decay": 0.5}), 10)
    params = {"kernel": jnp.asarray([3.0, -2.0])}
    state, expected = optimizer.init(params), np.asarray(params["kernel"])
    assert find_params_ema(plain.init(params)) is None
    for t in range(20):  # from the tenth on it is 0.5 that counts
        updates, state = optimizer.update(params, state, params)
        same, _ = plain.update(params, plain.init(params), params)
        np.testing.assert_array_equal(updates["kernel"], same["kernel"])
        params = optax.apply_updates(params, updates)
        old = min(0.5, (1 + t) / (10 + t))
        expected = old * expected + (1 - old) * np.asarray(params["kernel"])
    np.testing.assert_allclose(find_params_ema(state)["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("constant", {}, {0: 0, 5: 0.5, 10: 1, 99: 1}),
        ("cosine", {}, {10: 1, 55: 0.5, 100: 0}),
        ("linear", {"final": 0.1}, {10: 1, 55: 0.55, 100: 0.1}),
        ("step", {"at": [0.5], "factor": 0.2}, {10: 1, 54: 1, 56: 0.2, 99: 0.2}),
        ("optax:exponential_decay", {"decay_rate": 0.1}, {10: 1, 55: 0.1**0.5, 100: 0.1}),
        ("one_cycle", {"pct_start": 0.5, "div_factor": 10}, {10: 0.1, 55: 1, 100: 1e-5}),
    ],
)
def test_schedules_follow_their_formula_after_a_warm_up(name, kwargs, expected):
    """Ten epochs of ten updates, the first one of them warm-up."""
    schedule = {"name": name, "kwargs": kwargs, "warmup_epochs": 1}
    rate = make_schedule(config_of(schedule=schedule, optimizer={"learning_rate": 1.0}), 10)
    found = {step: float(rate(step)) for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def by_math(rate, total):
    return lambda count: rate * math.cos(count / total)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "adamm"}}, "'adamm'; did you mean adam. choose one of rmsprop"),
        ({"optimizer": {"name": "optax:nothing"}}, "cannot import optax:nothing: "),
        (
            {"optimizer": {"name": "sgd", "kwargs": {"momentm": 0.9}}},
            r"config.optimizer: sgd fails with kwargs=\{'momentm': 0.9\}: TypeError: .*momentm",
        ),
        ({"optimizer": {"name": "adamw", "kwargs": {"mask": 1}}}, "multiple values .* 'mask'"),
        ({"schedule": {"name": "cosine", "kwargs": {"fnal": 1}}}, "config.schedule: cosine fails"),
        ({"schedule": {"name": f"{__name__}:by_math"}}, "by_math fails with .*: Conc"),
        ({"schedule": {"warmup_epochs": 10}}, "warmup_epochs: no epoch is left"),
    ],
)
def test_what_is_no_optimizer_or_schedule_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(config_of(**changes), 10)
