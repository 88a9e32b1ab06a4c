"""What a run evaluates: errors of a split, and the running statistics under the lens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bn_vgg import lens
from bn_vgg.feed import Feed
from bn_vgg.metrics import ComparedMetrics, Moments
from bn_vgg.parallel import Devices
from bn_vgg.programs import Programs
from bn_vgg.run_data import RunData
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
        data: RunData,
        *,
        epsilon: float,
        precise_examples: int,
        compared_examples: int,
        after_dispatch: Callable[[], None] = lambda: None,
    ):
        """Takes what stays the same.

        Args:
          programs: of the run.
          devices: that they run on.
          data: of the run.
          epsilon: added to variances, `config.model.norm_epsilon`.
          precise_examples: as `config.eval` explains it.
          compared_examples: likewise.
          after_dispatch: called after every few batches.
        """
        self._programs, self._devices, self._data = programs, devices, data
        self._epsilon = epsilon
        self._precise_examples, self._compared_examples = precise_examples, compared_examples
        self._after_dispatch = after_dispatch

    def evaluate(self, state: Any, feed: Feed) -> Evaluated:
        """Evaluates all of a split by the five-window rule, with running statistics.

        Args:
          state: replicated.
          feed: of the split.
        """
        carried = self._devices.replicate(empty_evaluation(self._programs.model))
        for dispatch in feed.dispatches(self._data.eval_batches(feed, self._compared_examples)):
            carried = self._programs.eval_steps(carried, state, dispatch.batches, feed.pixels)
            self._after_dispatch()
        metrics, moments = self._devices.fetch(carried)
        values = {name: value.item() for name, value in metrics.compute().items()}
        return Evaluated(**values, moments=moments)

    def observe(self, state: Any, validated: Evaluated, epoch: int) -> Observed:
        """Looks at the activations, and at the running statistics if there are any.

        Args:
          state: replicated.
          validated: of the validation split, in this state.
          epoch: counted from 0; its first batches are for the precise statistics.

        Returns:
          `valid/error_rate_running`, `valid/error_rate_precise`, `valid/error_rate_batch`
          and `lens.distances` where there are running statistics and
          `config.eval.precise_examples` is not 0; and `lens.activity`.
        """
        norm = self._programs.model.norm
        rates, channels = {}, lens.activity(validated.moments, has_relu=not norm.has_activation)
        if self._precise_examples and norm.averages:
            precise = self._precise(state, epoch)
            rates = {"error_rate_running": validated.error_rate_running}
            rates |= self._compare(state, precise)
            precise, running = self._devices.fetch((precise, state.batch_stats))
            channels = lens.distances(running, precise, self._epsilon) | channels
        scalars = {f"valid/{name}": rate for name, rate in rates.items()}
        return Observed(scalars | lens.summarize(channels), channels)

    def _precise(self, state, epoch: int) -> lens.Precise:
        feed = self._data.train
        empty = lens.Precise.empty(self._programs.model, None)
        precise = self._devices.replicate(empty).replace(batch_stats=state.batch_stats)
        for dispatch in feed.dispatches(self._data.precise_batches(epoch, self._precise_examples)):
            precise = self._programs.precise_steps(precise, state, dispatch.batches, feed.pixels)
            self._after_dispatch()
        return precise

    def _compare(self, state, precise: lens.Precise) -> dict[str, float]:
        feed = self._data.valid
        metrics = self._devices.replicate(ComparedMetrics.empty())
        for dispatch in feed.dispatches(self._data.compared_batches(self._compared_examples)):
            metrics = self._programs.compare_steps(
                metrics, state, precise.batch_stats, dispatch.batches, feed.pixels
            )
            self._after_dispatch()
        computed = self._devices.fetch(metrics).compute()
        return {name: value.item() for name, value in computed.items()}
