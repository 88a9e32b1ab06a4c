"""Optimizers and learning-rate schedules by name, the recipe's RMSProp among them."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bn_vgg.errors import UserError, described


class ScaleByRmsWithCountState(NamedTuple):
    """`optax.ScaleByRmsState` and the number of updates done, int32."""

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of that name
    nu: Any


def scale_by_floored_rms(
    decay: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
    """Divides each gradient by max(sqrt(ms), epsilon), ms = decay*ms + (1-decay)*g**2.

    Optax's `scale_by_rms` adds epsilon where this takes the larger of the two.

    Args:
      decay: weight of the old mean square, which starts from 0.
      epsilon: the least that a gradient is divided by.
      bias_correction: whether to divide ms by 1 - decay**t at update t (Kingma and Ba 2015,
        section 3). Without it the first update is 1 / sqrt(1 - decay) times the nominal one.
    """

    def init(params):
        nu = jax.tree.map(jnp.zeros_like, params)
        if bias_correction:
            return ScaleByRmsWithCountState(count=jnp.zeros((), jnp.int32), nu=nu)
        return optax.ScaleByRmsState(nu=nu)

    def update(gradients, state, params=None):
        del params
        nu = optax.tree.update_moment(gradients, state.nu, decay, 2)
        mean_square, state = nu, state._replace(nu=nu)
        if bias_correction:
            state = state._replace(count=optax.safe_increment(state.count))
            mean_square = optax.tree.bias_correction(nu, decay, state.count)
        scaled = jax.tree.map(
            lambda g, ms: g / jnp.maximum(jnp.sqrt(ms), epsilon), gradients, mean_square
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


def rmsprop(
    learning_rate, *, decay: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
    """The recipe's optimizer; `config.optimizer` explains the arguments."""
    scale = scale_by_floored_rms(decay, epsilon, bias_correction)
    if callable(learning_rate):
        return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
    return optax.chain(scale, optax.scale(-learning_rate))


def muon(learning_rate, **kwargs) -> optax.GradientTransformation:
    """Muon (Jordan 2024) on kernels, convolutions as matrices (9 I, O); AdamW on the rest."""

    def dimensions(params):
        def of(x):
            if x.ndim < 2:
                return None
            return contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), (x.ndim - 1,))

        return jax.tree.map(of, params)

    return contrib.muon(learning_rate, muon_weight_dimension_numbers=dimensions, **kwargs)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "rmsprop": rmsprop,
    "sgd": optax.sgd,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lamb": optax.lamb,
    "muon": muon,
}


# Of (learning_rate, total): schedules over the updates after the warm-up, `total` of them.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": lambda rate, total: optax.constant_schedule(rate),
    "cosine": lambda rate, total, final=0.0: optax.cosine_decay_schedule(rate, total, final),
    "linear": lambda rate, total, final=0.0: optax.linear_schedule(rate, rate * final, total),
    "one_cycle": lambda rate, total, **kwargs: optax.cosine_onecycle_schedule(
        total, rate, **kwargs
    ),
    "step": lambda rate, total, boundaries=(0.5, 0.75), factor=0.1: (
        optax.piecewise_constant_schedule(rate, {round(b * total): factor for b in boundaries})
    ),
}


def make_schedule(config: Mapping[str, Any], steps_per_epoch: int) -> optax.Schedule | float:
    """Returns the learning rate: a number, or a function of the updates done.

    Args:
      config: the run's, nested.
      steps_per_epoch: updates of an epoch.

    Raises:
      UserError: there is no such schedule, or it does not take its `kwargs`.
    """
    schedule, learning_rate = config["schedule"], config["optimizer"]["learning_rate"]
    name, warmup = schedule["name"], round(schedule["warmup_epochs"] * steps_per_epoch)
    if name not in SCHEDULES:
        raise UserError(f"config.schedule.name: no {name!r}; there are: {', '.join(SCHEDULES)}")
    if name == "constant" and not warmup:
        return learning_rate
    total = max(1, config["num_epochs"] * steps_per_epoch - warmup)
    try:
        decay = SCHEDULES[name](learning_rate, total, **schedule["kwargs"])
    except Exception as error:
        raise UserError(
            f"config.schedule.kwargs: {name} fails with {dict(schedule['kwargs'])}: "
            f"{described(error)}"
        ) from error
    if not warmup:
        return decay
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup), decay], [warmup]
    )


def make_optimizer(config: Mapping[str, Any], steps_per_epoch: int) -> optax.GradientTransformation:
    """Makes the optimizer of `config.optimizer` and `config.schedule`; see configs/default.py.

    Args:
      config: the run's, nested.
      steps_per_epoch: updates of an epoch.

    Raises:
      UserError: there is no such optimizer or schedule, or it does not take its `kwargs`.
    """
    settings = config["optimizer"]
    name, rate = settings["name"], make_schedule(config, steps_per_epoch)
    kwargs = dict(settings["kwargs"])
    if name == "rmsprop":
        kwargs |= {field: settings[field] for field in ("decay", "epsilon", "bias_correction")}
    build = _find(name)
    try:
        optimizer = build(rate, **kwargs)
    except Exception as error:
        raise UserError(
            f"config.optimizer: {name} fails with {kwargs}: {described(error)}"
        ) from error
    parts = [optimizer]
    if settings["clip_norm"]:
        parts.insert(0, optax.clip_by_global_norm(settings["clip_norm"]))
    if settings["weight_decay"]:
        # Decoupled from the gradients' scaling (Loshchilov and Hutter 2019): p -= rate * decay * p.
        parts.append(_decay_weights(rate, settings["weight_decay"]))
    return optax.chain(*parts) if len(parts) > 1 else optimizer


def _decay_weights(rate, weight_decay: float) -> optax.GradientTransformation:
    """Subtracts rate * weight_decay * p from kernels, which have two axes or more."""

    def update(updates, count, params):
        step = weight_decay * (rate(count) if callable(rate) else rate)
        decayed = jax.tree.map(lambda u, p: u - step * p if p.ndim > 1 else u, updates, params)
        return decayed, optax.safe_increment(count)

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _find(name: str) -> Callable[..., optax.GradientTransformation]:
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"config.optimizer.name: no {name!r}; there are: {', '.join(OPTIMIZERS)}, and any "
            "function that returns an optax.GradientTransformation, as optax:lion or "
            "package.module:function"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UserError(f"config.optimizer.name={name}: {described(error)}") from error
