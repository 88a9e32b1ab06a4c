"""Refuses configurations that mean nothing, before any work is done."""

import math
from collections.abc import Callable
from typing import Any

from bn_vgg.batch_norm import AVERAGES
from bn_vgg.errors import UserError
from bn_vgg.feed import PLACEMENTS
from bn_vgg.vgg import DTYPES, PADDINGS, PASSES, make_model
from bn_vgg.workdir import flatten

_Check = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> _Check:
    return lambda x: math.isfinite(x) and x >= low, f"at least {low}"


def _between(low: float, high: float) -> _Check:
    return lambda x: low <= x < high, f"from {low} to less than {high}"


def _positive() -> _Check:
    return lambda x: math.isfinite(x) and x > 0, "a positive finite number"


def _one_of(names) -> _Check:
    return lambda x: x in names, f"one of {', '.join(names)}"


def _are_sizes(value) -> bool:
    return len(value) > 0 and all(isinstance(size, int) and size > 0 for size in value)


_CHECKS: dict[str, _Check] = {
    "name": (lambda x: bool(x) and "/" not in x, "a name without slashes"),
    "seed": _between(0, 2**63),
    "num_epochs": _between(1, 10**6),
    "batch_size": _at_least(1),
    "data.min_side": _between(1, 4097),
    "data.crop_size": _between(1, 4097),
    "data.placement": _one_of(PLACEMENTS),
    "data.valid_examples": _at_least(1),
    "data.test_examples": _at_least(1),
    "model.norm_decay": _between(0, 1),
    "model.norm_epsilon": _positive(),
    "model.stats_average": _one_of(AVERAGES),
    "model.stats_pass": _one_of(PASSES),
    "model.features": (_are_sizes, "positive integers"),
    "model.hidden_units": _at_least(1),
    "model.num_classes": _at_least(2),
    "model.padding": _one_of(PADDINGS),
    "model.dropout_rate": _between(0, 1),
    "model.dtype": _one_of(DTYPES),
    "optimizer.learning_rate": _positive(),
    "optimizer.decay": _between(0, 1),
    "optimizer.epsilon": _positive(),
    "eval.batch_size": _at_least(1),
    "eval.precise_examples": _at_least(0),
    "eval.compared_examples": _at_least(1),
}


def check_config(config: dict[str, Any]) -> None:
    """Checks the values of a configuration, nested.

    Raises:
      UserError: names the field, its value and what it takes, or says what is wrong with
        the normalizer.
    """
    flat = flatten(config)
    for field, (is_valid, wanted) in _CHECKS.items():
        if not is_valid(flat[field]):
            raise UserError(f"config.{field} is {flat[field]!r}; it takes {wanted}")
    if flat["data.crop_size"] > flat["data.min_side"]:
        raise UserError(
            f"config.data.crop_size: a window of {flat['data.crop_size']} pixels does not fit "
            f"images scaled to config.data.min_side {flat['data.min_side']}"
        )
    make_model(**config["model"])
