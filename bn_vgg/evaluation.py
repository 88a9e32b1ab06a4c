"""What a run evaluates: errors of a split, and the running statistics under the lens."""

from typing import Any, NamedTuple

import numpy as np

from bn_vgg import lens
from bn_vgg.data import batches
from bn_vgg.data.batches import Batches
from bn_vgg.feed import Feed
from bn_vgg.metrics import ComparedMetrics
from bn_vgg.parallel import Devices, round_up
from bn_vgg.programs import Programs
from bn_vgg.steps import empty_evaluation


class Evaluated(NamedTuple):
    """What came of evaluating.

    Attributes:
      loss: mean over examples, by the five-window rule.
      error_rate: likewise.
      scalars: of the lens, by name; see `Evaluator.validate`.
      channels: what some of these summarize: an array (C,) for each layer and quantity.
    """

    loss: float
    error_rate: float
    scalars: dict[str, float]
    channels: dict[str, np.ndarray]


class Evaluator:
    """Evaluates states of one run."""

    def __init__(
        self,
        programs: Programs,
        devices: Devices,
        *,
        train_batch_size: int,
        eval_batch_size: int,
        crop_size: int,
        epsilon: float,
        precise_examples: int,
        compared_examples: int,
    ):
        """Takes what stays the same; `config.eval` explains the last two."""
        self._programs, self._devices = programs, devices
        self._train_batch_size, self._crop_size = train_batch_size, crop_size
        self._eval_batch_size = round_up(eval_batch_size, devices.count)
        self._precise_batches = -(-precise_examples // train_batch_size)
        self._compared_examples, self._epsilon = compared_examples, epsilon

    def evaluate(self, state: Any, feed: Feed) -> Evaluated:
        """Evaluates all of a split by the five-window rule, with running statistics.

        Args:
          state: replicated.
          feed: of the split.
        """
        model, devices = self._programs.model, self._devices
        carried = devices.replicate(empty_evaluation(model))
        evaluated = batches.eval_batches(
            feed.images, batch_size=self._eval_batch_size, crop_size=self._crop_size,
            num_compared=self._compared_examples,
        )  # fmt: skip
        for several in feed.several(evaluated):
            carried = self._programs.eval_steps(carried, state, several.batches, feed.pixels)
        metrics, moments = devices.fetch(carried)
        values = {name: value.item() for name, value in metrics.compute().items()}
        running = {"error_rate_running": values.pop("error_rate_running")}
        channels = lens.activity(moments, has_relu=not model.norm.has_activation)
        return Evaluated(**values, scalars=running, channels=channels)

    def validate(
        self, state: Any, valid_feed: Feed, train_feed: Feed, epoch_batches: Batches
    ) -> Evaluated:
        """Evaluates the validation split, and the running statistics if there are any.

        Args:
          state: replicated.
          valid_feed: of the validation split.
          train_feed: of the training split.
          epoch_batches: of the training split; the first are for the precise statistics.

        Returns:
          `scalars` holds `valid/error_rate_running`, `valid/error_rate_precise` and
          `valid/error_rate_batch` where there are running statistics and
          `config.eval.precise_examples` is not 0, and a summary of `channels`.
        """
        evaluated = self.evaluate(state, valid_feed)
        rates, channels = {}, evaluated.channels
        if self._precise_batches and self._programs.model.norm.averages:
            precise = self._precise(state, train_feed, epoch_batches)
            rates = evaluated.scalars | self._compare(state, precise, valid_feed)
            precise, running = self._devices.fetch((precise, state.batch_stats))
            channels = lens.distances(running, precise, self._epsilon) | channels
        scalars = {f"valid/{name}": rate for name, rate in rates.items()}
        return evaluated._replace(scalars=scalars | lens.summarize(channels), channels=channels)

    def _precise(self, state, feed: Feed, epoch_batches: Batches) -> lens.Precise:
        first = {key: array[: self._precise_batches] for key, array in epoch_batches.items()}
        empty = lens.Precise.empty(self._programs.model, None)
        precise = self._devices.replicate(empty).replace(batch_stats=state.batch_stats)
        for several in feed.several(first):
            precise = self._programs.precise_steps(precise, state, several.batches, feed.pixels)
        return precise

    def _compare(self, state, precise: lens.Precise, feed: Feed) -> dict[str, float]:
        compared = batches.compared_batches(
            feed.images, batch_size=self._train_batch_size, crop_size=self._crop_size,
            count=self._compared_examples,
        )  # fmt: skip
        metrics = self._devices.replicate(ComparedMetrics.empty())
        for several in feed.several(compared):
            metrics = self._programs.compare_steps(
                metrics, state, precise.batch_stats, several.batches, feed.pixels
            )
        computed = self._devices.fetch(metrics).compute()
        return {name: value.item() for name, value in computed.items()}
