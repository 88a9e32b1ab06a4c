"""Where a number that is not finite came from: the steps are taken again, and looked into."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from bn_vgg import operations
from bn_vgg.data.batches import Batches
from bn_vgg.errors import UserError
from bn_vgg.feed import Feed, with_windows
from bn_vgg.layer_look import Look, layer_of, make_look
from bn_vgg.metrics import Moments, TrainMetrics
from bn_vgg.models.vgg import VGG
from bn_vgg.parallel import Devices
from bn_vgg.programs import Programs
from bn_vgg.state import TrainState
from bn_vgg.steps import make_eval_step, make_train_step


class Remembered(NamedTuple):
    """A run as it was when all was finite, on the devices.

    Attributes:
      step: updates done.
      state: after these.
      metrics: of the epoch so far.
    """

    step: int
    state: TrainState
    metrics: TrainMetrics


class Found(NamedTuple):
    """What is not finite.

    Attributes:
      what: a noun for it, with the layer.
      where: else, to be said after it; may be empty.
      before: what to add to the last finite values; may be empty.
      advice: what to do, to be said last; may be empty.
    """

    what: str
    where: str = ""
    before: str = ""
    advice: str = ""


_ADVICE = "; the same command with --config.debug.nans=True finds the operation"
_PARTS = {
    "batch_stats": "a running statistic",
    "opt_state": "a mean square of the gradients",
    "params": "a parameter",
}


def in_state(state: TrainState) -> str | None:
    """Names the first part, and its layer, that is not finite; `state` is of NumPy arrays."""
    for part, name in _PARTS.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            if not np.isfinite(leaf).all():
                return f"{name} of {layer_of(path)}"
    return None


def checked(state: TrainState, where: str) -> TrainState:
    """Returns `state`, of NumPy arrays.

    Raises:
      UserError: not all of it is finite; `where` says of what state it is.
    """
    bad = in_state(state)
    if bad is not None:
        raise UserError(f"{bad} is not a finite number {where}")
    return state


class Finder:
    """Finds what made a step, or an evaluation, go wrong."""

    def __init__(self, programs: Programs, devices: Devices, *, crop_size: int, by_operation: bool):
        """Takes what stays the same.

        Args:
          programs: of the run.
          devices: that they run on.
          crop_size: side of the windows in pixels.
          by_operation: whether to look for the operation, too: `config.debug.nans`.
        """
        self._programs, self._devices = programs, devices
        self._crop_size, self._by_operation = crop_size, by_operation

    def in_training(
        self, remembered: Remembered, first: int, key: jax.Array, feed: Feed, batches: Batches,
        begun: int,
    ) -> Found:  # fmt: skip
        """Takes the steps again from `remembered` up to the one that went wrong.

        Args:
          remembered: within the epoch.
          first: the step, counted from 1, that made the first number that is not finite.
          key: the epoch's.
          feed: of the training images.
          batches: of the epoch.
          begun: updates that were done when it began.
        """
        devices, train_steps = self._devices, self._programs.train_steps
        look_into = devices.compile(
            make_look(self._programs.model, self._crop_size, devices.axis_name)
        )
        step, state_and_metrics = remembered.step, devices.copy(remembered[1:])
        keys = devices.replicate(key)
        for dispatch in feed.dispatches(batches, skip=step - begun):
            if step + dispatch.size > first - 2:  # the step before it is looked into as well
                break
            state_and_metrics = train_steps(state_and_metrics, keys, dispatch.batches, feed.pixels)
            step += dispatch.size
        look, bad = None, -1
        while step < first and bad < 0:
            before, start = look, devices.copy(state_and_metrics[0])
            one = _one(feed, batches, step - begun)
            look = Look(devices.fetch(look_into(start, keys, one, feed.pixels)))
            state_and_metrics = train_steps(state_and_metrics, keys, one, feed.pixels)
            step += 1
            bad = int(devices.fetch(state_and_metrics[1]).compute()["first_non_finite"][0])
        if look is None or bad != first:
            return _unknown(f"taken again from step {remembered.step}, the steps do not show which")
        found = _judge(before, look, devices.fetch(state_and_metrics[0]))
        logging.info("step %d was\n%s", first, "\n".join(look.lines()))
        if before is not None:
            logging.info("the step before it was\n%s", "\n".join(before.lines()))
        step_of_one = make_train_step(self._model_of_one_device(), self._programs.optimizer)
        taken = ((devices.first(start), share, key) for share in self._shares(one, feed))
        return self._with_operation(found, step_of_one, taken)

    def in_validation(
        self, state: TrainState, moments: Mapping[str, Moments], feed: Feed, batches: Batches
    ) -> Found:
        """Looks where the validation loss became what it is.

        Args:
          state: that was evaluated, on the devices.
          moments: of each layer's output, NumPy arrays.
          feed: of the validation images.
          batches: that it was evaluated on.
        """
        layers = [*(f"block{i}" for i in range(len(self._programs.model.features))), "hidden"]
        bad = [layer for layer in layers if not np.isfinite(moments[layer].maximum).all()]
        where = f" (first in the activations of {bad[0]})" if bad else ""
        eval_step = make_eval_step(self._model_of_one_device())
        of_one = self._devices.first(state)
        taken = (
            (of_one, share)
            for number in range(len(batches["labels_SN"]))
            for share in self._shares(_one(feed, batches, number), feed)
        )
        return self._with_operation(Found("the validation loss", where), eval_step, taken)

    def _with_operation(self, found: Found, step: Callable, taken: Iterable[tuple]) -> Found:
        if not self._by_operation:
            return found._replace(advice=_ADVICE)
        for args in taken:
            operation = operations.find(step, *args, norm=self._programs.model.norm)
            if operation is not None:
                return found._replace(where=f"{found.where}: {operation}")
        return found._replace(where=f"{found.where}; operation by operation all is finite")

    def _model_of_one_device(self) -> VGG:
        model = self._programs.model
        settings = {k: v for k, v in model.norm.settings.items() if k != "axis_name"}
        return model.clone(norm=dataclasses.replace(model.norm, settings=settings))

    def _shares(self, one: dict[str, Any], feed: Feed) -> list[dict[str, jax.Array]]:
        """This host's part of a batch as a step takes it: in groups that share batch statistics."""
        axis_name, pixels = self._devices.axis_name, self._devices.first(feed.pixels)
        arrays = jax.device_get(one)
        if axis_name is None:
            shares = [{key: a[0] for key, a in arrays.items()}]
        elif self._programs.model.norm.settings.get("axis_name") is not None:
            shares = [{key: a[:, 0].reshape(-1, *a.shape[3:]) for key, a in arrays.items()}]
        else:
            shares = [
                {key: a[i, 0] for key, a in arrays.items()} for i in range(self._devices.local)
            ]
        return [with_windows(jax.device_put(x), pixels, self._crop_size) for x in shares]


def _one(feed: Feed, batches: Batches, number: int) -> dict[str, Any]:
    """One batch, stacked and placed as a dispatch's."""
    one = {key: array[number : number + 1] for key, array in batches.items()}
    return next(feed.dispatches(one)).batches


def _judge(before: Look | None, look: Look, after: TrainState) -> Found:
    layer, where = look.first_activations(), ""
    if not look.loss_is_finite or not look.gradients_are_finite:
        what = "the gradient" if look.loss_is_finite else "the loss"
        if layer is not None:
            where = f" (first in the activations of {layer})"
        elif look.loss_is_finite:
            layer = look.first_gradient()
            what = f"the gradient of {layer}"
    else:
        named = in_state(after)
        if named is None:
            return _unknown("taken again, the step does not show which")
        what, layer = named, named.rpartition(" ")[2]
    before_it = ""
    if before is not None and layer in before.largest:
        before_it = f" and activations of {layer} up to {before.largest[layer]:.4g}"
    return Found(what, where, before_it)


def _unknown(why: str) -> Found:
    return Found("something", f" (the loss, a gradient, a statistic or a parameter: {why})")
