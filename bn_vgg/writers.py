"""TensorBoard by CLU, whose writers import TensorFlow: imported only where it is asked for."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from clu import metric_writers, periodic_actions
from etils import epath
from tensorboard.plugins.hparams import api as hp
from tensorboard.plugins.hparams import summary_v2

from bn_vgg.errors import UserError, first_line, free_bytes
from bn_vgg.hooks import Hooks

# The columns that TensorBoard's table of runs shows unasked. It takes them from whichever
# run it reads first, so they are the same in all.
_HPARAM_COLUMNS = ("name", "model.norm", "data.min_side", "model.dropout_rate", "seed")
_METRIC_COLUMNS = (
    "valid/best_error_rate",
    "test/error_rate",
    "train/error_rate",
    "train/images_per_second",
)


class Writer:
    """CLU's default writer, of files in `folder` and of the log, with a readable table of runs.

    Attributes:
      run: names the run in that table; unique to its folder.
    """

    def __init__(self, folder: epath.Path, run: str):
        self.run, self._folder = run, folder
        with self._writing():
            self._writer = metric_writers.create_default_writer(folder, asynchronous=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            raise UserError(
                f"cannot write TensorBoard's files in {self._folder}{self._sizes()}: "
                f"{first_line(error)}; run the same command again when they can be written"
            ) from error

    def _sizes(self) -> str:
        """What they need is TensorFlow's to know: what they have is the best there is to go by."""
        if "://" in str(self._folder):
            return ""
        try:
            written = sum(os.path.getsize(path) for path in self._folder.glob("*.tfevents.*"))
        except OSError:  # the folder is gone, or no longer to be read
            return ""
        return f" ({written:,} bytes so far; {free_bytes(self._folder)})"

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:  # noqa: D102
        with self._writing():
            self._writer.write_scalars(step, scalars)

    def write_histograms(self, step: int, arrays: Mapping[str, Any]) -> None:  # noqa: D102
        with self._writing():
            self._writer.write_histograms(step, arrays)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:  # noqa: D102
        with self._writing():
            self._writer.write_images(step, images)

    def flush(self) -> None:  # noqa: D102
        with self._writing():
            self._writer.flush()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration, and which of it the table shows.

        CLU's own method names a run by a digest, and TensorBoard then shows the first few
        columns of the alphabet.
        """
        columns = summary_v2.hparams_config_pb(
            hparams=[hp.HParam(name) for name in _HPARAM_COLUMNS],
            metrics=[hp.Metric(tag) for tag in _METRIC_COLUMNS],
        )
        for summary in (columns, summary_v2.hparams_pb(dict(hparams), trial_id=self.run)):
            (value,) = summary.value
            nothing = np.zeros(0, np.float32)
            with self._writing():
                self._writer.write_summaries(0, {value.tag: nothing}, {value.tag: value.metadata})


def make_hooks(
    hooks: Hooks,
    folder: epath.Path,
    run: str,
    *,
    num_steps: int,
    profile: bool,
) -> Hooks:
    """Returns `hooks` and those of a run that TensorBoard can show, for the first host alone.

    Args:
      hooks: without a writer.
      folder: the run's.
      run: its name in TensorBoard's table.
      num_steps: of the whole run, for the time left that is logged twice a minute.
      profile: whether to trace a few steps.
    """
    actions: list[Callable[[int], Any]] = [*hooks.actions]
    actions.append(periodic_actions.ReportProgress(num_train_steps=num_steps, every_secs=30))
    if profile:
        tracing = periodic_actions.Profile(
            logdir=folder, first_profile=2, num_profile_steps=2, profile_duration_ms=None,
            every_secs=None,
        )  # fmt: skip
        # It counts dispatches, of several steps each, from this start.
        calls = itertools.count(1)
        actions.append(lambda step: tracing(next(calls)))
    return dataclasses.replace(hooks, writer=Writer(folder, run), actions=actions)
