"""The compiled programs of a run: several training or evaluation steps a dispatch."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import optax

from bn_vgg.feed import scan_batches
from bn_vgg.lens import make_compare_step, make_precise_step
from bn_vgg.metrics import merge_moments
from bn_vgg.models import make_model
from bn_vgg.models.vgg import VGG
from bn_vgg.optimizer import rmsprop
from bn_vgg.parallel import Devices
from bn_vgg.state import jit_init
from bn_vgg.steps import make_eval_step, make_train_step


class Programs(NamedTuple):
    """What a run computes on its devices; `stacked` is `Dispatch.batches`, `pixels` `Feed.pixels`.

    Attributes:
      model: of `config.model`.
      optimizer: of `config.optimizer`.
      init: `(rng, images_NHWC) -> state`, see `state.init_state`.
      train_steps: `((state, metrics), rng, stacked, pixels) -> (state, metrics)`.
      eval_steps: `((metrics, moments), state, stacked, pixels) -> (metrics, moments)`.
      precise_steps: `(precise, state, stacked, pixels) -> precise`.
      compare_steps: `(metrics, state, batch_stats, stacked, pixels) -> metrics`.
    """

    model: VGG
    optimizer: optax.GradientTransformation
    init: Callable
    train_steps: Callable
    eval_steps: Callable
    precise_steps: Callable
    compare_steps: Callable


class Session:
    """What the runs of one process share: its devices, and programs that are compiled once.

    Runs that differ in seed, data or length alone have the same programs.

    Attributes:
      devices: all of the process's.
    """

    def __init__(self):
        self.devices = Devices()
        self._programs: dict[str, Programs] = {}

    def programs(
        self,
        model_settings: Mapping[str, Any],
        optimizer_settings: Mapping[str, Any],
        crop_size: int,
    ) -> Programs:
        """Returns the programs of `make_programs`, made when they are first asked for."""
        key = json.dumps([model_settings, optimizer_settings, crop_size], sort_keys=True)
        if key not in self._programs:
            self._programs[key] = make_programs(
                model_settings, optimizer_settings, crop_size, self.devices
            )
        return self._programs[key]


def make_programs(
    model_settings: Mapping[str, Any],
    optimizer_settings: Mapping[str, Any],
    crop_size: int,
    devices: Devices,
) -> Programs:
    """Makes the programs of a run; they are compiled when they are first called.

    Their first arguments are donated: what was passed is gone afterwards; but not those of
    `precise_steps`, which begin with the state's own statistics.

    Args:
      model_settings: `config.model`.
      optimizer_settings: `config.optimizer`.
      crop_size: side of the windows in pixels.
      devices: what they run on.
    """
    axis_name = devices.axis_name
    model = make_model(**model_settings, axis_name=axis_name)
    optimizer = rmsprop(**optimizer_settings)
    fold = partial(scan_batches, crop_size=crop_size)
    train_step = make_train_step(model, optimizer, axis_name)
    eval_step = make_eval_step(model, axis_name)
    precise_step = make_precise_step(model, axis_name)
    compare_step = make_compare_step(model, axis_name)

    def train_steps(state_and_metrics, rng, stacked, pixels):
        def update(state_and_metrics, batch):
            state, metrics = state_and_metrics
            state, new = train_step(state, batch, rng)
            return state, metrics.merge(new)

        return fold(update, state_and_metrics, stacked, pixels)

    def eval_steps(metrics_and_moments, state, stacked, pixels):
        def update(metrics_and_moments, batch):
            metrics, moments = metrics_and_moments
            new_metrics, new_moments = eval_step(state, batch)
            return metrics.merge(new_metrics), merge_moments(moments, new_moments)

        return fold(update, metrics_and_moments, stacked, pixels)

    def precise_steps(precise, state, stacked, pixels):
        def update(precise, batch):
            return precise_step(precise, state, batch)

        return fold(update, precise, stacked, pixels)

    def compare_steps(metrics, state, batch_stats, stacked, pixels):
        def update(metrics, batch):
            return metrics.merge(compare_step(state, batch_stats, batch))

        return fold(update, metrics, stacked, pixels)

    return Programs(
        model=model,
        optimizer=optimizer,
        init=jit_init(model, optimizer),
        train_steps=devices.compile(train_steps, donated=(0,)),
        eval_steps=devices.compile(eval_steps, donated=(0,)),
        precise_steps=devices.compile(precise_steps),
        compare_steps=devices.compile(compare_steps, donated=(0,)),
    )
