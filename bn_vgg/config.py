"""Refuses configurations that mean nothing, before any work is done."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bn_vgg.data.pipeline import PLACEMENTS
from bn_vgg.errors import UserError, telling
from bn_vgg.models import DTYPES, PRECISIONS, make_model
from bn_vgg.models.batch_norm import AVERAGES
from bn_vgg.models.layers import PADDINGS
from bn_vgg.models.norms import PASSES
from bn_vgg.optimizer import SCHEDULES, make_optimizer
from bn_vgg.run_dir import flatten
from bn_vgg.steps import needs_precise_stats


class _Numbers(NamedTuple):
    """From `low` to less than `below`."""

    low: float
    below: float


_FRACTION, _AMOUNT = _Numbers(0, 1), _Numbers(0, 10**6)
# Float32 holds no others, and the network computes in it.
_POSITIVE = _Numbers(float(jnp.finfo("float32").tiny), float(jnp.finfo("float32").max))
_MANY = range(1, 10**6 + 1)

# What every field there is takes: a type, a range of integers, numbers, or the names to choose
# from; `tuple` is one of positive integers.
_FIELDS: dict[str, Any] = {
    "name": str,
    "variant": str,
    "seed": range(2**32),
    "num_epochs": _MANY,
    "batch_size": _MANY,
    "data.source": str,
    "data.min_side": range(1, 4097),
    "data.crop_size": range(1, 4097),
    "data.placement": PLACEMENTS,
    "data.valid_examples": range(1, 10**9),
    "data.test_examples": range(1, 10**9),
    "model.norm": str,
    "model.norm_kwargs": dict,
    "model.norm_decay": _FRACTION,
    "model.norm_epsilon": _POSITIVE,
    "model.stats_average": AVERAGES,
    "model.stats_pass": PASSES,
    "model.per_device_stats": bool,
    "model.features": tuple,
    "model.hidden_units": range(1, 10**9),
    "model.num_classes": range(2, 10**9),
    "model.padding": PADDINGS,
    "model.dropout_rate": _FRACTION,
    "model.dtype": DTYPES,
    "model.precision": PRECISIONS,
    "init.weights": str,
    "init.statistics": bool,
    "model.name": str,
    "model.kwargs": dict,
    "augment.horizontal_flip": bool,
    "augment.colour_jitter": _FRACTION,
    "augment.cutout": range(10**9),
    "augment.mixup": _AMOUNT,
    "augment.label_smoothing": _FRACTION,
    "optimizer.name": str,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.kwargs": dict,
    "optimizer.weight_decay": _AMOUNT,
    "optimizer.clip_norm": _AMOUNT,
    "optimizer.average_decay": _FRACTION,
    "optimizer.decay": _FRACTION,
    "optimizer.epsilon": _POSITIVE,
    "optimizer.bias_correction": bool,
    "schedule.name": SCHEDULES,
    "schedule.warmup_epochs": _AMOUNT,
    "schedule.kwargs": dict,
    "eval.batch_size": _MANY,
    "eval.flips": bool,
    "eval.statistics": ("running", "precise"),
    "eval.precise_examples": range(10**9),
    "eval.compared_examples": range(1, 10**9),
    "checkpoint.every_steps": range(10**9),
    "debug.nans": bool,
    "resources.CPU": _AMOUNT,
    "resources.GPU": _AMOUNT,
    "resources.TPU": _AMOUNT,
}


def check_config(config: dict[str, Any]) -> None:
    """Checks a configuration, nested: its fields, their values, and the network that they make."""
    flat = flatten(config, fields=_FIELDS)
    for field, wanted in _FIELDS.items():
        if field not in flat:
            raise UserError(f"config.{field} is missing; it takes {_described(wanted)}")
        if not _fits(flat[field], wanted):
            shown = _shown(flat[field])
            raise UserError(f"config.{field} is {shown}; it takes {_described(wanted)}")
    for field in flat:
        if field not in _FIELDS:
            raise UserError(f"no field config.{field}; there are: {', '.join(_FIELDS)}")
    name, side, min_side = (flat[x] for x in ("name", "data.crop_size", "data.min_side"))
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise UserError(f"config.name is {_shown(name)}; it takes the name of a folder")
    if side > min_side:
        raise UserError(
            f"config.data.crop_size is {side}, which is more than config.data.min_side, {min_side}"
        )
    if (flat["model.precision"], flat["model.dtype"]) == ("tensorfloat32", "bfloat16"):
        raise UserError(
            "config.model.precision: tensorfloat32 is for float32, not config.model.dtype bfloat16"
        )
    try:
        json.dumps(config, allow_nan=False)  # as the run's folder keeps it
    except (TypeError, ValueError, RecursionError) as error:
        kwargs = ", ".join(f"{x} is {_shown(flat[x])}" for x in flat if type(flat[x]) is dict)
        raise UserError(f"config.{kwargs}: JSON cannot hold that: {error}") from error
    make_optimizer(config, steps_per_epoch=1)
    model = make_model(**config["model"])
    if needs_precise_stats(config) and model.norm.averages and not flat["eval.precise_examples"]:
        raise UserError(
            "config.eval.precise_examples is 0, but config.eval.statistics=precise and "
            "config.optimizer.average_decay need some"
        )
    if flat["model.norm_kwargs"] or flat["model.name"] != "vgg8":
        _try_network(config)


def _fits(value, wanted) -> bool:
    # True and False are integers of Python's, and NumPy's numbers do not go into JSON.
    if isinstance(wanted, range):
        return type(value) is int and value in wanted
    if isinstance(wanted, _Numbers):
        return type(value) in (int, float) and wanted.low <= value < wanted.below
    if wanted is tuple:
        return isinstance(value, list) and 0 < len(value) <= 100 and all(
            _fits(size, range(1, 2**31)) for size in value
        )  # fmt: skip
    if wanted is str:
        return isinstance(value, str) and len(value) <= 4096
    if isinstance(wanted, type):
        return isinstance(value, wanted)
    return isinstance(value, str) and value in wanted


def _described(wanted) -> str:
    if isinstance(wanted, range):
        return f"an integer from {wanted[0]} to {wanted[-1]}"
    if isinstance(wanted, _Numbers):
        return f"a number from {wanted.low:.3g} to less than {wanted.below:.3g}"
    if isinstance(wanted, type):
        texts = {str: "a text", bool: "True or False", dict: "a dict"}
        return texts.get(wanted, "positive integers, 100 at most")
    return f"one of {', '.join(wanted)}"


def _try_network(config: dict[str, Any]) -> None:
    """Traces a training pass: wrong settings of a normalizer or a network fail nowhere before."""
    model, side = make_model(**config["model"]), config["data"]["crop_size"]
    count = config["batch_size"]
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    options = {"train": True, "positions_N": jnp.arange(count), "rngs": rngs}

    def apply(images_NHWC):
        variables = model.init(rngs, images_NHWC, train=False)
        return model.apply(variables, images_NHWC, mutable=True, **options)

    name, kwargs = config["model"]["name"], config["model"]["kwargs"]
    with telling(
        f"config.model.norm={model.norm.name} in config.model.name={name} fails with "
        f"norm_kwargs={_shown(config['model']['norm_kwargs'])} and kwargs={_shown(kwargs)}"
    ):
        jax.eval_shape(apply, jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32))


def _shown(value) -> str:
    try:
        text = repr(value)
    except Exception as error:  # integers of more than 4,300 digits, objects of anybody's own
        text = f"<{type(value).__name__}: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}…"
