"""The compiled programs of a run: several training or evaluation steps a dispatch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import optax

from bn_vgg.feed import one_after_the_other
from bn_vgg.optimizer import rmsprop
from bn_vgg.parallel import Devices
from bn_vgg.steps import make_eval_step, make_train_step
from bn_vgg.vgg import make_model


class Programs(NamedTuple):
    """What a run computes on its devices. `several` and `pixels` are a `Feed`'s.

    Attributes:
      model: of `config.model`.
      optimizer: of `config.optimizer`.
      train_steps: `((state, metrics), rng, several, pixels) -> (state, metrics)`.
      eval_steps: `(metrics, state, several, pixels) -> metrics`.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    train_steps: Callable
    eval_steps: Callable


def make_programs(
    model_settings: Mapping[str, Any],
    optimizer_settings: Mapping[str, Any],
    crop_size: int,
    devices: Devices,
) -> Programs:
    """Makes the programs of a run; they are compiled when they are first called.

    Their first arguments are donated: what was passed is gone afterwards.

    Args:
      model_settings: `config.model`.
      optimizer_settings: `config.optimizer`.
      crop_size: side of the windows in pixels.
      devices: what they run on.
    """
    model = make_model(**model_settings, axis_name=devices.axis_name)
    optimizer = rmsprop(**optimizer_settings)
    train_step = make_train_step(model, optimizer, devices.axis_name)
    eval_step = make_eval_step(model, devices.axis_name)
    return Programs(
        model=model,
        optimizer=optimizer,
        train_steps=devices.compile(partial(_train_steps, train_step, crop_size), donated=(0,)),
        eval_steps=devices.compile(partial(_eval_steps, eval_step, crop_size), donated=(0,)),
    )


def _train_steps(train_step, crop_size, state_and_metrics, rng, several, pixels):
    def update(state_and_metrics, batch):
        state, metrics = state_and_metrics
        state, new = train_step(state, batch, rng)
        return state, metrics.merge(new)

    return one_after_the_other(update, state_and_metrics, several, pixels, crop_size)


def _eval_steps(eval_step, crop_size, metrics, state, several, pixels):
    def update(metrics, batch):
        return metrics.merge(eval_step(state, batch))

    return one_after_the_other(update, metrics, several, pixels, crop_size)
