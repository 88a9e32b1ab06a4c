"""The compiled programs of a run. Each call takes a chunk, which is several steps."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_vgg.data.crops import gather_crops
from bn_vgg.devices import Devices
from bn_vgg.evaluation import PreciseStats, make_compare_step, make_precise_step
from bn_vgg.metrics import ComparedMetrics, EvalMetrics, TrainMetrics
from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_channels
from bn_vgg.optimizer import make_optimizer
from bn_vgg.steps import init_state, make_eval_step, make_train_step


class Programs:
    """All programs of a run; each is compiled at its first call.

    Their arguments `batches` and `pixels` are those of a `Chunk`.
    """

    def __init__(self, config: Mapping[str, Any], devices: Devices, steps_per_epoch: int):
        """Makes the programs for a nested configuration."""
        axis_name, crop_size = devices.axis_name, config["data"]["crop_size"]
        self.devices, self.crop_size, self.augment = devices, crop_size, config["augment"]
        self.model = model = make_model(**config["model"], axis_name=axis_name)
        self.optimizer = make_optimizer(config, steps_per_epoch)
        train_step = make_train_step(model, self.optimizer, axis_name, self.augment)
        eval_step = make_eval_step(model, axis_name, config["eval"]["flips"])
        precise_step = make_precise_step(model, axis_name, self.augment)
        compare_step = make_compare_step(model, axis_name)

        def fold(update: Callable, carry, batches, pixels):
            """Folds `update(carry, batch)` over the batches of a chunk."""

            def body(carry, batch):
                crops = gather_crops(batch, pixels, crop_size)
                return update(carry, batch | {"crops": crops}), None

            return lax.scan(body, carry, batches)[0]

        def train_chunk(state_and_metrics, rng, batches, pixels):
            def update(state_and_metrics, batch):
                state, metrics = state_and_metrics
                state, new = train_step(state, batch, rng)
                return state, metrics.merge(new)

            return fold(update, state_and_metrics, batches, pixels)

        def eval_chunk(metrics_and_maxima, variables, batches, pixels):
            def update(metrics_and_maxima, batch):
                metrics, maxima = metrics_and_maxima
                new_metrics, new_maxima = eval_step(variables, batch)
                return metrics.merge(new_metrics), jax.tree.map(jnp.maximum, maxima, new_maxima)

            return fold(update, metrics_and_maxima, batches, pixels)

        def precise_chunk(precise, state, rng, batches, pixels):
            return fold(lambda p, b: precise_step(p, state, b, rng), precise, batches, pixels)

        def compare_chunk(metrics, state, precise, batches, pixels):
            def update(metrics, batch):
                return metrics.merge(compare_step(state, precise.batch_stats, batch))

            return fold(update, metrics, batches, pixels)

        # On a CPU XLA takes 3.2 s to compile this, and 1.3 s at optimization level 1. The weights
        # are the same, except for last digits of those that depend on data.
        cpu = jax.default_backend() == "cpu"
        options = {"xla_backend_optimization_level": "1"} if cpu else None
        # `(rng, images_NHWC) -> TrainState`
        self.init = jax.jit(partial(init_state, model, self.optimizer), compiler_options=options)
        # `((state, metrics), rng, batches, pixels) -> (state, metrics)`
        self.train_chunk = devices.compile(train_chunk)
        # `((metrics, maxima), variables, batches, pixels) -> (metrics, maxima)`
        self.eval_chunk = devices.compile(eval_chunk)
        # `(precise, state, rng, batches, pixels) -> precise`
        self.precise_chunk = devices.compile(precise_chunk)
        # `(metrics, state, precise, batches, pixels) -> metrics`
        self.compare_chunk = devices.compile(compare_chunk)

        # The initial values of `metrics`, `maxima` and `precise`.
        channels = layer_channels(model, crop_size)
        maxima = {layer: jnp.full(count, -jnp.inf) for layer, count in channels["output"].items()}
        moments = {
            layer: (jnp.zeros(c), jnp.zeros(c)) for layer, c in channels["before_norm"].items()
        }
        empty_precise = PreciseStats(jnp.zeros(()), None, moments)
        self.empty_training = devices.replicate(TrainMetrics.empty())
        self.empty_evaluation = devices.replicate((EvalMetrics.empty(), maxima))
        self.empty_precise = devices.replicate(empty_precise)
        self.empty_comparison = devices.replicate(ComparedMetrics.empty())
