"""A run's output: a line for each epoch, and TensorBoard files by CLU."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from bn_vgg.errors import wrap_write_errors

if TYPE_CHECKING:  # importing it takes a second, because of Orbax
    from bn_vgg.checkpoint import Progress

# The first columns of TensorBoard's table of runs. TensorBoard takes them from the run that it
# reads first, so they must be the same in all runs.
_COLUMNS = ("name", "model.norm", "data.min_side", "model.dropout_rate", "seed")
_METRICS = (
    "valid/best_error_rate",
    "test/error_rate",
    "train/error_rate",
    "train/images_per_second",
)
# A prefix that TensorBoard sorts after `train`, `valid` and `test`.
_LAYERS = "zz_layers"


def epoch_line(progress: "Progress", num_epochs: int, scalars: Mapping[str, float]) -> str:
    """Describes an epoch in one line: errors, speed, remaining time."""
    epochs_left = num_epochs - progress.epoch
    left = progress.seconds / progress.epoch * epochs_left
    speed = scalars.get("train/images_per_second")
    return (
        f"epoch {progress.epoch:3}/{num_epochs}"
        f"  train error {scalars['train/error_rate']:.3f}"
        f"  valid error {progress.valid_error_rate:.3f}"
        f" (best {progress.best_error_rate:.3f} in epoch {progress.best_epoch})"
        + (f"  {speed:.0f} images/s" if speed else "")
        + (f"  {format_seconds(left)} left" if epochs_left else "")
    )


def format_seconds(seconds: float) -> str:
    """Formats a duration as 45s, 12m30s or 3h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h{minutes % 60:02}m"


class TensorBoard:
    """Writes a run's TensorBoard files; only the first host makes one.

    Only here are CLU's writers imported, because they import TensorFlow, which takes seconds.
    """

    def __init__(self, folder: epath.Path, run: str):
        """Opens the writer; `run` is the run's unique name in TensorBoard's table."""
        from clu import metric_writers

        self._folder, self._run = folder, run
        with wrap_write_errors(f"TensorBoard's files in {folder}"):
            self._writer = metric_writers.create_default_writer(folder, asynchronous=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        what, remote = f"TensorBoard's files in {self._folder}", "://" in str(self._folder)
        with wrap_write_errors(what, folder="" if remote else self._folder):
            yield
            self._writer.flush()

    def write_start(self, hparams: Mapping[str, Any], images_NHWC: np.ndarray | None) -> None:
        """Writes all fields of the configuration and, if given, training images (N, H, W, C).

        CLU's own method names a run by a digest, and shows columns in alphabetical order.
        """
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

        # TensorBoard shows the columns with `differs` first, in alphabetical order.
        experiment = api_pb2.Experiment(
            hparam_infos=[api_pb2.HParamInfo(name=n, differs=n in _COLUMNS) for n in hparams],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=x)) for x in _METRICS],
        )
        columns = plugin_data_pb2.HParamsPluginData(experiment=experiment)
        values = {n: x if isinstance(x, str | int | float) else str(x) for n, x in hparams.items()}
        (start,) = summary_v2.hparams_pb(values, trial_id=self._run).value
        summaries = {
            metadata.EXPERIMENT_TAG: metadata.create_summary_metadata(columns),
            start.tag: start.metadata,
        }
        with self._writing():
            nothing = {tag: np.zeros(0, np.float32) for tag in summaries}
            self._writer.write_summaries(0, nothing, summaries)
            if images_NHWC is not None:
                self._writer.write_images(0, {"train/crops": images_NHWC[:16]})

    def write_epoch(
        self,
        step: int,
        scalars: Mapping[str, float],
        observed: Mapping[str, float],
        channels: Mapping[str, np.ndarray],
    ) -> None:
        """Writes `scalars` (`train/…`, `valid/…`) and statistics of layers.

        `observed` has one number per layer and statistic, such as `mean_distance/block3`.
        `channels` has the arrays (C,) behind them; `mean_distance/…` are written as histograms.
        """
        layers = {f"{_LAYERS}/{name}": value for name, value in observed.items()}
        mean_distances = {
            f"{_LAYERS}/channels/{name}": array
            for name, array in channels.items()
            if name.startswith("mean_distance/")
        }
        with self._writing():
            self._writer.write_scalars(step, {**scalars, **layers})
            self._writer.write_histograms(step, mean_distances)

    def write_result(self, step: int, rates: Mapping[str, float]) -> None:
        """Writes the test error rates, such as `test/error_rate`."""
        tests = {name.replace("test_", "test/"): rate for name, rate in rates.items()}
        with self._writing():
            self._writer.write_scalars(step, tests)
