"""The compiled programs of a run. Each takes a chunk: several steps in one call."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bn_vgg.data.crops import crops_of
from bn_vgg.devices import Devices
from bn_vgg.evaluation import Precise, make_compare_step, make_precise_step
from bn_vgg.metrics import ComparedMetrics, EvalMetrics, Moments, TrainMetrics, merge_moments
from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_channels
from bn_vgg.optimizer import make_optimizer
from bn_vgg.steps import TrainState, init_state, make_eval_step, make_train_step


class Programs(NamedTuple):
    """What a run computes; `batches` and `pixels` are those of a `Chunk`.

    Attributes:
      devices: that it runs on.
      model: of `config.model`.
      optimizer: of `config.optimizer`.
      augment: `config.augment`.
      crop_size: side of a crop in pixels.
      init: `(rng, images_NHWC) -> TrainState`.
      train_chunk: `((state, metrics), rng, batches, pixels) -> (state, metrics)`.
      eval_chunk: `((metrics, moments), variables, batches, pixels) -> (metrics, moments)`.
      precise_chunk: `(precise, state, rng, batches, pixels) -> precise`.
      compare_chunk: `(metrics, state, batch_stats, batches, pixels) -> metrics`.
      empty_training, empty_evaluation, empty_precise, empty_comparison: what these start from.
    """

    devices: Devices
    model: Any
    optimizer: optax.GradientTransformation
    augment: Mapping[str, Any]
    crop_size: int
    init: Callable[[jax.Array, jax.Array], TrainState]
    train_chunk: Callable
    eval_chunk: Callable
    precise_chunk: Callable
    compare_chunk: Callable
    empty_training: TrainMetrics
    empty_evaluation: Any
    empty_precise: Precise
    empty_comparison: ComparedMetrics


def make_programs(config: Mapping[str, Any], devices: Devices, steps_per_epoch: int) -> Programs:
    """Makes the programs of a run. They are compiled when they are first called.

    Args:
      config: the run's, nested.
      devices: what they run on.
      steps_per_epoch: updates of an epoch, for the schedule.
    """
    axis_name, crop_size = devices.axis_name, config["data"]["crop_size"]
    model = make_model(**config["model"], axis_name=axis_name)
    optimizer = make_optimizer(config, steps_per_epoch)
    augment = config["augment"]
    train_step = make_train_step(model, optimizer, axis_name, augment)
    eval_step = make_eval_step(model, axis_name, config["eval"]["flips"])
    precise_step = make_precise_step(model, axis_name, augment)
    compare_step = make_compare_step(model, axis_name)

    def fold(update: Callable, carry, batches, pixels):
        """Folds `update(carry, batch)` over the batches of a chunk."""

        def turn(carry, batch):
            return update(carry, batch | {"crops": crops_of(batch, pixels, crop_size)}), None

        return lax.scan(turn, carry, batches)[0]

    def train_chunk(state_and_metrics, rng, batches, pixels):
        def update(state_and_metrics, batch):
            state, metrics = state_and_metrics
            state, new = train_step(state, batch, rng)
            return state, metrics.merge(new)

        return fold(update, state_and_metrics, batches, pixels)

    def eval_chunk(metrics_and_moments, variables, batches, pixels):
        def update(metrics_and_moments, batch):
            metrics, moments = metrics_and_moments
            new_metrics, new_moments = eval_step(variables, batch)
            return metrics.merge(new_metrics), merge_moments(moments, new_moments)

        return fold(update, metrics_and_moments, batches, pixels)

    def precise_chunk(precise, state, rng, batches, pixels):
        return fold(lambda p, batch: precise_step(p, state, batch, rng), precise, batches, pixels)

    def compare_chunk(metrics, state, batch_stats, batches, pixels):
        def update(metrics, batch):
            return metrics.merge(compare_step(state, batch_stats, batch))

        return fold(update, metrics, batches, pixels)

    # A CPU draws the weights in next to no time, but compiling that takes XLA 3.2 s, and 1.3 s at
    # this level of optimization. The weights are the same, but for last digits where data matter.
    options = {"xla_backend_optimization_level": "1"} if jax.default_backend() == "cpu" else None
    init = jax.jit(partial(init_state, model, optimizer), compiler_options=options)

    channels = layer_channels(model, crop_size)

    def no_moments(which: str) -> dict[str, Moments]:
        return {layer: Moments.empty(count) for layer, count in channels[which].items()}

    return Programs(
        devices=devices,
        model=model,
        optimizer=optimizer,
        augment=augment,
        crop_size=crop_size,
        init=init,
        train_chunk=devices.compile(train_chunk),
        eval_chunk=devices.compile(eval_chunk),
        precise_chunk=devices.compile(precise_chunk),
        compare_chunk=devices.compile(compare_chunk),
        empty_training=devices.replicate(TrainMetrics.empty()),
        empty_evaluation=devices.replicate((EvalMetrics.empty(), no_moments("output"))),
        empty_precise=devices.replicate(
            Precise(jnp.zeros((), jnp.float32), None, no_moments("before_norm"))
        ),
        empty_comparison=devices.replicate(ComparedMetrics.empty()),
    )  # fmt: skip
