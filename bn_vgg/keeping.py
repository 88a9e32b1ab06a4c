"""What a run keeps while it goes on, and takes up again: checkpoints, lines, its progress."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from bn_vgg.checkpoint import Checkpoints, Progress, read
from bn_vgg.finite import checked
from bn_vgg.metrics import TrainMetrics
from bn_vgg.parallel import Devices
from bn_vgg.run_dir import Workdir
from bn_vgg.state import TrainState


class Keeper:
    """Keeps a run. No checkpoint holds a number that is not finite.

    Attributes:
      workdir: where.
      progress: as of the last checkpoint, or the end of the last epoch.
      lines: of the epochs done.
    """

    def __init__(
        self,
        workdir: Workdir,
        checkpoints: Checkpoints,
        devices: Devices,
        say: Callable[[str], None],
    ):
        """Takes what it works with; the run's time passes from now.

        Args:
          workdir: claimed for the run.
          checkpoints: in it.
          devices: where the state is that is kept.
          say: shows a line to a person.
        """
        self.workdir, self.progress = workdir, Progress()
        self.lines: list[dict[str, Any]] = []
        self._checkpoints, self._devices, self._say = checkpoints, devices, say
        self._started, self._seconds_before = time.monotonic(), 0.0

    def take_up(self, state: TrainState) -> tuple[TrainState, TrainMetrics]:
        """Returns what the run goes on from: the newest checkpoint, or `state` at its beginning.

        Returns:
          The state, and what the epoch in progress has measured.

        Raises:
          UserError: there are checkpoints and none is intact, or not all is finite.
        """
        metrics = TrainMetrics.empty()
        found = self._checkpoints.newest(state)
        if found is not None:
            self.progress, state, damages = found
            self._seconds_before = self.progress.seconds
            # A line may have been written for an epoch whose checkpoint was not.
            lines = self.workdir.read_metrics()
            self.lines = [line for line in lines if line["epoch"] <= self.progress.epoch]
            for damage in damages:
                self._say(f"{damage}; it is kept in {self.workdir.damaged}")
            if self.progress.within_epoch is not None:
                metrics = metrics.with_leaves(self.progress.within_epoch)
            self._say(f"resuming after epoch {self.progress.epoch} (step {self.progress.step})")
        where = f"in what the run goes on from, step {self.progress.step}"
        checked(jax.device_get(state), where)
        return state, metrics

    def seconds(self) -> float:
        """Spent on the run so far, by this process and those before it."""
        return self._seconds_before + time.monotonic() - self._started

    def keep_within_epoch(self, step: int, state: TrainState, metrics: TrainMetrics) -> None:
        """Begins to write a checkpoint within an epoch.

        Args:
          step: updates done.
          state: after these, on the devices.
          metrics: of the epoch so far, likewise.
        """
        measured = [leaf.item() for leaf in jax.tree.leaves(self._devices.fetch(metrics))]
        self.progress = self.progress.in_epoch(step=step, measured=measured, seconds=self.seconds())
        logging.info("keeping step %d, within an epoch", step)
        self.save(state)

    def end_epoch(self, step: int, valid_error_rate: float) -> None:
        """Counts an epoch; `write_line` and `save` are to follow."""
        self.progress = self.progress.after_epoch(
            step=step, valid_error_rate=valid_error_rate, seconds=self.seconds()
        )

    def write_line(self, scalars: Mapping[str, float]) -> None:
        """Writes the line of the epoch that has ended."""
        progress = self.progress
        self.lines.append(
            {"epoch": progress.epoch, "step": progress.step, **scalars, "seconds": progress.seconds}
        )
        self.workdir.write_metrics(self.lines)

    def save(self, state: TrainState) -> None:
        """Begins to write the checkpoint of `progress`; `state` is on the devices.

        Raises:
          UserError: not all of it is finite, it or the one before cannot be written, or the
            run's folder is gone.
        """
        self.workdir.check_there()
        host_state = checked(self._devices.fetch(state), f"after step {self.progress.step}")
        self._checkpoints.save(host_state, self.progress)

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._checkpoints.wait()

    def best(self, like: TrainState) -> TrainState:
        """Reads the best state, in NumPy arrays; `like` is of the same shapes."""
        self.wait()
        return read(self.workdir.checkpoints, self.progress.best_step, like)[1]

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes `result.json`, with which the run is finished."""
        self.workdir.check_there()
        self.workdir.write("result.json", result)
