"""Registries of optimizers and learning-rate schedules, and the recipe's RMSProp."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bn_vgg.errors import UserError, wrap_errors
from bn_vgg.models.lookup import find_callable


def rmsprop(
    learning_rate, *, decay: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
    """The recipe's RMSProp: g / max(sqrt(ms), epsilon), ms = decay*ms + (1-decay)*g**2.

    Optax adds epsilon instead of taking the maximum.

    Args:
      learning_rate: a number or a schedule.
      decay: weight of the old value in the mean square ms, which starts from 0.
      epsilon: the smallest divisor of a gradient.
      bias_correction: whether to divide ms by 1 - decay**t at update t (Kingma and Ba 2015,
        section 3). Without it the first update is 1 / sqrt(1 - decay) times the nominal one.
    """
    inner = optax.scale_by_rms(decay, bias_correction=bias_correction)

    def update(gradients, state, params=None):
        del params
        _, state = inner.update(gradients, state)  # only the mean square is used
        ms = state.nu
        if bias_correction:
            ms = optax.tree.bias_correction(ms, decay, state.count)
        scaled = jax.tree.map(lambda g, x: g / jnp.maximum(jnp.sqrt(x), epsilon), gradients, ms)
        return scaled, state

    scale = optax.GradientTransformation(inner.init, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def muon(learning_rate, weight_decay=0.0, mask=None, **kwargs) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for kernels, as (H * W * I, O) matrices, and NAdam for the rest.

    Jordan leaves the first and the last layer to Adam; here their kernels are Muon's, too.
    """

    def dimensions(params):
        def of(x, is_kernel):
            rows, columns = tuple(range(x.ndim - 1)), (x.ndim - 1,)
            return contrib.MuonDimensionNumbers(rows, columns) if is_kernel else None

        return jax.tree.map(of, params, _kernel_mask(params))

    return contrib.muon(
        learning_rate, weight_decay=weight_decay, weight_decay_mask=mask,
        muon_weight_dimension_numbers=dimensions, **kwargs,
    )  # fmt: skip


class ParamsEmaState(NamedTuple):
    """The number of updates, int32, and the moving average of the weights."""

    count: jax.Array  # type: ignore[assignment]
    average: Any


def track_params_ema(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the weights; updates are not changed.

    At update t, from 0, the old average has weight min(decay, (1 + t) / (10 + t)), as in
    TensorFlow's `ExponentialMovingAverage`, so that the initial weights are soon forgotten.
    """

    def init(params):
        return ParamsEmaState(jnp.zeros((), jnp.int32), params)

    def update(updates, state, params):
        old = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        new = optax.apply_updates(params, updates)
        average = optax.incremental_update(new, state.average, 1 - old)
        return updates, ParamsEmaState(optax.safe_increment(state.count), average)

    return optax.GradientTransformation(init, update)


def find_params_ema(opt_state: Any) -> Any:
    """Returns the average that `track_params_ema` keeps, structured as the parameters, or None."""
    parts = opt_state if isinstance(opt_state, tuple) else ()
    return next((part.average for part in parts if isinstance(part, ParamsEmaState)), None)


# Fields of `config.optimizer` that only `rmsprop` takes.
RMSPROP_FIELDS = ("decay", "epsilon", "bias_correction")
# Called with the learning rate, a number or a schedule, `config.optimizer.kwargs` and, if it takes
# both, `weight_decay` and `mask`; `rmsprop` also with its fields.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "rmsprop": rmsprop,
    "sgd": optax.sgd,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lamb": optax.lamb,
    "muon": muon,
}
# Called with the learning rate, the number of updates after the warm-up, and
# `config.schedule.kwargs`.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": lambda rate, total: optax.constant_schedule(rate),
    "cosine": lambda rate, total, final=0.0: optax.cosine_decay_schedule(rate, total, final),
    "linear": lambda rate, total, final=0.0: optax.linear_schedule(rate, rate * final, total),
    "one_cycle": lambda rate, total, **kwargs: optax.cosine_onecycle_schedule(
        total, rate, **kwargs
    ),
    "step": lambda rate, total, at=(0.5, 0.75), factor=0.1: optax.piecewise_constant_schedule(
        rate, {round(share * total): factor for share in at}
    ),
}


def make_schedule(config: Mapping[str, Any], steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the updates done; `config` is nested."""
    schedule, rate = config["schedule"], config["optimizer"]["learning_rate"]
    warmup = round(schedule["warmup_epochs"] * steps_per_epoch)
    total = config["num_epochs"] * steps_per_epoch - warmup
    if total <= 0:
        raise UserError("config.schedule.warmup_epochs: no epoch is left of config.num_epochs")
    build = find_callable("config.schedule.name", schedule["name"], SCHEDULES)
    with wrap_errors(f"config.schedule: {schedule['name']} fails with kwargs={schedule['kwargs']}"):
        after = build(rate, total, **schedule["kwargs"])
        jax.eval_shape(lambda count: jnp.float32(after(count)), jax.ShapeDtypeStruct((), "int32"))
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def make_optimizer(config: Mapping[str, Any], steps_per_epoch: int) -> optax.GradientTransformation:
    """Makes the optimizer of a nested configuration; configs/default.py explains the fields.

    Raises:
      UserError: there is no such optimizer, or it or the schedule does not accept its `kwargs`.
    """
    settings = config["optimizer"]
    name, rate = settings["name"], settings["learning_rate"]
    if (config["schedule"]["name"], config["schedule"]["warmup_epochs"]) != ("constant", 0):
        rate = make_schedule(config, steps_per_epoch)
    build = find_callable("config.optimizer.name", name, OPTIMIZERS)
    decay, own = settings["weight_decay"], {}
    if build is rmsprop:
        own = {x: settings[x] for x in RMSPROP_FIELDS}
    with wrap_errors(f"config.optimizer: {name} fails with kwargs={settings['kwargs']}"):
        takes = inspect.signature(build).parameters
        if decays := {"weight_decay", "mask"} <= takes.keys():
            own = {"weight_decay": decay, "mask": _kernel_mask}
        # Raises a TypeError if `kwargs` repeats one of `own`.
        parts = [build(rate, **own, **settings["kwargs"])]
    if settings["clip_norm"]:
        parts.insert(0, optax.clip_by_global_norm(settings["clip_norm"]))
    if decay and not decays:  # decoupled, as in AdamW (Loshchilov and Hutter 2019)
        step = (lambda count: -decay * rate(count)) if callable(rate) else -decay * rate
        parts.append(optax.add_decayed_weights(step, _kernel_mask))
    if settings["average_decay"]:
        parts.append(track_params_ema(settings["average_decay"]))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _kernel_mask(params):
    """True for kernels, False for biases and scales, which have one number for each channel."""
    return jax.tree.map(lambda x: x.ndim > 1 and x.size > x.shape[-1], params)
