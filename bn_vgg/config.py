"""Refuses configurations that mean nothing, before any work is done."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_vgg.data.pipeline import PLACEMENTS
from bn_vgg.errors import UserError, described
from bn_vgg.models import DTYPES, PRECISIONS, make_model
from bn_vgg.models.batch_norm import AVERAGES
from bn_vgg.models.layers import PADDINGS
from bn_vgg.models.norms import NORMALIZERS, PASSES, NormFactory
from bn_vgg.models.vgg import count_values
from bn_vgg.optimizer import SCHEDULES, make_optimizer
from bn_vgg.run_dir import flatten

# Of a network, and of what its convolutions compute for one example: 8 GiB each.
MAX_VALUES = 2**31

_Check = tuple[Callable[[Any], bool], str]


def _is_integer(value) -> bool:
    # True and False are integers of Python's, and NumPy's do not go into JSON.
    return type(value) is int


def _is_number(value) -> bool:
    return _is_integer(value) or type(value) is float


def _integer(low: int, below: int) -> _Check:
    return (
        lambda x: _is_integer(x) and low <= x < below,
        f"an integer from {low} to less than {below}",
    )


def _at_least(low: int, most: int = 10**9) -> _Check:
    return (
        lambda x: _is_integer(x) and low <= x <= most,
        f"an integer, at least {low}, at most {most}",
    )


def _number(low: float, below: float) -> _Check:
    return lambda x: _is_number(x) and low <= x < below, f"from {low} to less than {below}"


def _positive() -> _Check:
    # Float32 holds no others, and the network computes in it.
    least, most = (float(limit) for limit in (jnp.finfo("float32").tiny, jnp.finfo("float32").max))
    return lambda x: _is_number(x) and least <= x <= most, "a positive finite number of float32"


def _one_of(names) -> _Check:
    return lambda x: isinstance(x, str) and x in names, f"one of {', '.join(names)}"


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value)


def _is_name(value) -> bool:
    # It becomes a folder's.
    fits = _is_text(value) and len(value.encode("utf-8", "replace")) <= 200
    return fits and value.isprintable() and "/" not in value and value not in (".", "..")


def _are_sizes(value) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= 100
        and all(_is_integer(size) and size > 0 for size in value)
    )


# Of every field there is.
_CHECKS: dict[str, _Check] = {
    "name": (_is_name, "a name without slashes, of at most 200 bytes, to call a folder by"),
    "variant": (_is_text, "a text"),
    "seed": _integer(0, 2**32),
    "num_epochs": _integer(1, 10**6),
    "batch_size": _at_least(1, 10**6),
    "data.source": (_is_text, "a text"),
    "data.min_side": _integer(1, 4097),
    "data.crop_size": _integer(1, 4097),
    "data.placement": _one_of(PLACEMENTS),
    "data.valid_examples": _at_least(1),
    "data.test_examples": _at_least(1),
    "model.norm": (lambda x: _is_text(x) and len(x) <= 1000, "a name"),
    "model.norm_kwargs": (lambda x: isinstance(x, dict), "a dict"),
    "model.norm_decay": _number(0, 1),
    "model.norm_epsilon": _positive(),
    "model.stats_average": _one_of(AVERAGES),
    "model.stats_pass": _one_of(PASSES),
    "model.per_device_stats": (lambda x: isinstance(x, bool), "True or False"),
    "model.features": (_are_sizes, "positive integers, 100 at most"),
    "model.hidden_units": _at_least(1),
    "model.num_classes": _at_least(2),
    "model.padding": _one_of(PADDINGS),
    "model.dropout_rate": _number(0, 1),
    "model.dtype": _one_of(DTYPES),
    "model.precision": _one_of(PRECISIONS),
    "augment.horizontal_flip": (lambda x: isinstance(x, bool), "True or False"),
    "augment.colour_jitter": _number(0, 1),
    "augment.cutout": _at_least(0),
    "augment.mixup": _number(0, 1e6),
    "augment.label_smoothing": _number(0, 1),
    "eval.flips": (lambda x: isinstance(x, bool), "True or False"),
    "model.name": (_is_text, "a name"),
    "model.kwargs": (lambda x: isinstance(x, dict), "a dict"),
    "optimizer.name": (_is_text, "a name"),
    "optimizer.kwargs": (lambda x: isinstance(x, dict), "a dict"),
    "optimizer.weight_decay": _number(0, 1e6),
    "optimizer.clip_norm": _number(0, 1e6),
    "schedule.name": _one_of(SCHEDULES),
    "schedule.warmup_epochs": _number(0, 1e6),
    "schedule.kwargs": (lambda x: isinstance(x, dict), "a dict"),
    "optimizer.learning_rate": _positive(),
    "optimizer.decay": _number(0, 1),
    "optimizer.epsilon": _positive(),
    "optimizer.bias_correction": (lambda x: isinstance(x, bool), "True or False"),
    "eval.batch_size": _at_least(1, 10**6),
    "eval.precise_examples": _at_least(0),
    "eval.compared_examples": _at_least(1),
    "checkpoint.every_steps": _at_least(0),
    "debug.nans": (lambda x: isinstance(x, bool), "True or False"),
    "resources.CPU": _number(0, 10**6),
    "resources.GPU": _number(0, 10**6),
    "resources.TPU": _number(0, 10**6),
}


def check_config(config: dict[str, Any]) -> None:
    """Checks the fields of a configuration, nested, and their values.

    Raises:
      UserError: names the field, its value and what it takes, or says what is wrong with
        the normalizer.
    """
    flat = flatten(config, fields=_CHECKS)
    for field, (is_valid, wanted) in _CHECKS.items():
        if field not in flat:
            raise UserError(f"config.{field} is missing; it takes {wanted}")
        if not is_valid(flat[field]):
            raise UserError(f"config.{field} is {_shown(flat[field])}; it takes {wanted}")
    for field in flat:
        if field not in _CHECKS:
            raise UserError(f"no field config.{field}; there are: {', '.join(_CHECKS)}")
    if flat["data.crop_size"] > flat["data.min_side"]:
        raise UserError(
            f"config.data.crop_size: a crop of {flat['data.crop_size']} pixels does not fit "
            f"images scaled to config.data.min_side {flat['data.min_side']}"
        )
    if (flat["model.precision"], flat["model.dtype"]) == ("tensorfloat32", "bfloat16"):
        raise UserError(
            "config.model.precision: tensorfloat32 is of float32 products; config.model.dtype is "
            "bfloat16"
        )
    try:
        json.dumps(config, allow_nan=False)  # as the run's folder keeps it
    except (TypeError, ValueError, RecursionError) as error:
        kwargs = _shown(flat["model.norm_kwargs"])
        raise UserError(
            f"config.model.norm_kwargs is {kwargs}, which JSON cannot hold: {error}"
        ) from error
    make_optimizer(config, steps_per_epoch=1)
    model = make_model(**config["model"])
    if flat["model.name"] == "vgg8":
        _check_size(flat)
    else:
        _try_network(model, flat)
    if model.norm.name in NORMALIZERS and flat["model.norm_kwargs"]:
        _try_norm(model.norm, flat)


def _check_size(flat: Mapping[str, Any]) -> None:
    features, crop = flat["model.features"], flat["data.crop_size"]
    parameters, computed = count_values(
        crop, features, flat["model.hidden_units"], flat["model.num_classes"],
        flat["model.padding"],
    )  # fmt: skip
    if parameters == 0:
        raise UserError(
            f"config.model.features: the poolings after {len(features)} layers leave nothing of "
            f"a crop of config.data.crop_size {crop} pixels"
        )
    if max(parameters, computed) > MAX_VALUES:
        raise UserError(
            f"config.model.features, hidden_units and num_classes: a network of {parameters:,} "
            f"parameters that computes {computed:,} values for each example; {MAX_VALUES:,} at most"
        )


def _try_network(model: nn.Module, flat: Mapping[str, Any]) -> None:
    """Traces the network: wrong settings fail nowhere before that."""
    name, side = flat["model.name"], flat["data.crop_size"]
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    try:
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config.model.name={name} fails: {described(error)}") from error


def _try_norm(norm: NormFactory, flat: Mapping[str, Any]) -> None:
    """Traces the normalizer for a small image: wrong settings fail nowhere before that."""
    offered: dict[str, Any] = {"use_running_average": False, "mean_of_x": None}
    given: dict[str, Any] = {name: offered[name] for name in norm.given}

    def normalize(x_NHWC):
        module = norm.make()
        variables = module.init(jax.random.key(0), x_NHWC, **given)
        return module.apply(variables, x_NHWC, **given, mutable=True)

    for features in sorted(set(flat["model.features"])):
        shape = (flat["batch_size"], 2, 2, features)
        try:
            jax.eval_shape(normalize, jax.ShapeDtypeStruct(shape, jnp.float32))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"config.model.norm_kwargs: {norm.name} fails with "
                f"{_shown(flat['model.norm_kwargs'])}: {type(error).__name__}: {error}"
            ) from error


def _shown(value) -> str:
    try:
        text = repr(value)
    except Exception as error:  # integers of more than 4,300 digits, objects of anybody's own
        text = f"<{type(value).__name__}: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}…"
