"""What a run evaluates: errors of a split, and the running statistics under the lens."""

from typing import Any, NamedTuple

import numpy as np

from bn_vgg import lens
from bn_vgg.data import batches
from bn_vgg.data.batches import Batches
from bn_vgg.feed import Feed
from bn_vgg.metrics import ComparedMetrics, Moments
from bn_vgg.parallel import Devices, round_up
from bn_vgg.programs import Programs
from bn_vgg.steps import empty_evaluation


class Evaluated(NamedTuple):
    """What came of evaluating a split with running statistics.

    Attributes:
      loss: mean over examples, by the five-window rule.
      error_rate: likewise.
      error_rate_running: of the centre window alone, of the examples that are compared.
      moments: of each layer's output, NumPy arrays.
    """

    loss: float
    error_rate: float
    error_rate_running: float
    moments: dict[str, Moments]


class Observed(NamedTuple):
    """What the lens shows.

    Attributes:
      scalars: by name, as they are recorded.
      channels: what some of these summarize: an array (C,) for each layer and quantity.
    """

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
        return Evaluated(**values, moments=moments)

    def observe(
        self, state: Any, validated: Evaluated, valid_feed: Feed, train_feed: Feed, epoch: Batches
    ) -> Observed:
        """Looks at the activations, and at the running statistics if there are any.

        Args:
          state: replicated.
          validated: of the validation split, in this state.
          valid_feed: of that split.
          train_feed: of the training split.
          epoch: its batches; the first are for the precise statistics.

        Returns:
          `valid/error_rate_running`, `valid/error_rate_precise`, `valid/error_rate_batch`
          and `lens.distances` where there are running statistics and
          `config.eval.precise_examples` is not 0; and `lens.activity`.
        """
        norm = self._programs.model.norm
        rates, channels = {}, lens.activity(validated.moments, has_relu=not norm.has_activation)
        if self._precise_batches and norm.averages:
            precise = self._precise(state, train_feed, epoch)
            rates = {"error_rate_running": validated.error_rate_running}
            rates |= self._compare(state, precise, valid_feed)
            precise, running = self._devices.fetch((precise, state.batch_stats))
            channels = lens.distances(running, precise, self._epsilon) | channels
        scalars = {f"valid/{name}": rate for name, rate in rates.items()}
        return Observed(scalars | lens.summarize(channels), channels)

    def _precise(self, state, feed: Feed, epoch: Batches) -> lens.Precise:
        first = {key: array[: self._precise_batches] for key, array in epoch.items()}
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
