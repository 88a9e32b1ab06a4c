"""What a command adds to the training loop, and what a person is told of a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from bn_vgg.checkpoint import Progress


class Writer(Protocol):
    """What of `clu.metric_writers.MetricWriter` is used."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...  # noqa: D102

    def write_histograms(self, step: int, arrays: Mapping[str, Any]) -> None: ...  # noqa: D102

    def write_images(self, step: int, images: Mapping[str, Any]) -> None: ...  # noqa: D102

    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...  # noqa: D102

    def flush(self) -> None: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The loop runs without any of these.

    Attributes:
      writer: of scalars and images, such as CLU's for TensorBoard.
      actions: called with the number of updates done, after every few (CLU's periodic actions).
      say: shows a line to a person.
    """

    writer: Writer | None = None
    actions: Sequence[Callable[[int], Any]] = ()
    say: Callable[[str], None] = logging.info

    def write_start(self, hparams: Mapping[str, Any], images_NHWC: np.ndarray | None) -> None:
        """Writes the configuration and, where there are any, a grid of training windows."""
        if self.writer is None:
            return
        self.writer.write_hparams(
            {name: str(x) if isinstance(x, list | dict) else x for name, x in hparams.items()}
        )
        if images_NHWC is not None:
            self.writer.write_images(0, {"train/windows": grid(images_NHWC)[None]})
        self.writer.flush()

    def write_histograms(self, step: int, channels: Mapping[str, np.ndarray]) -> None:
        """Writes how each quantity spreads over a layer's channels."""
        if self.writer is not None:
            # TensorBoard shows neither of a scalar and a histogram of the same name.
            self.writer.write_histograms(
                step, {f"channels/{name}": array for name, array in channels.items()}
            )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes and flushes, so that TensorBoard shows an epoch as soon as it is done."""
        if self.writer is not None:
            self.writer.write_scalars(step, scalars)
            self.writer.flush()


def epoch_line(progress: Progress, num_epochs: int, scalars: Mapping[str, float]) -> str:
    """Says in one line how the run is going and when it will be done."""
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


def grid(images_NHWC: np.ndarray, columns: int = 8) -> np.ndarray:
    """Lays the first images out in rows of `columns`: one image (H', W', C)."""
    rows = min(len(images_NHWC) // columns, columns) or 1
    columns = min(columns, len(images_NHWC))
    _, height, width, channels = images_NHWC.shape
    tiles = images_NHWC[: rows * columns].reshape(rows, columns, height, width, channels)
    return tiles.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def format_seconds(seconds: float) -> str:
    """Formats a duration as 45s, 12m30s or 3h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h{minutes % 60:02}m"
