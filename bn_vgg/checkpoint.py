"""Checkpoints by Orbax: the latest, and the best by validation error."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from bn_vgg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a resumed run needs to know besides its state.

    Attributes:
      epoch: epochs done.
      step: updates done.
      valid_error_rate: after that epoch.
      best_epoch: the first epoch with the lowest validation error so far, from 1.
      best_step: the updates done by then; names its checkpoint.
      best_error_rate: that error.
      seconds: wall time spent on the run so far, over all its processes.
    """

    epoch: int = 0
    step: int = 0
    valid_error_rate: float = float("inf")
    best_epoch: int = 0
    best_step: int = 0
    best_error_rate: float = float("inf")
    seconds: float = 0.0

    def after_epoch(self, *, step: int, valid_error_rate: float, seconds: float) -> "Progress":
        """Returns the progress one epoch on; of equal errors the earlier is the best."""
        epoch = self.epoch + 1
        better = valid_error_rate < self.best_error_rate
        best = (epoch, step, valid_error_rate) if better else self.best
        return Progress(epoch, step, valid_error_rate, *best, seconds)

    @property
    def best(self) -> tuple[int, int, float]:
        """Epoch, step and error of the best."""
        return self.best_epoch, self.best_step, self.best_error_rate


class Checkpoints:
    """The checkpoints of one run, in one folder, each named by its step.

    Written while training goes on; every host takes part in saving and restoring.
    """

    def __init__(self, folder: epath.Path):
        def best_last(metrics):  # the earlier of two equals is the better
            return -metrics["valid_error_rate"], -metrics["step"]

        keep = AnyPreservationPolicy([LatestN(1), BestN(get_metric_fn=best_last, n=1)])
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            # Without `best_fn` Orbax neither writes metrics nor reads them when resuming.
            options=ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=best_last),
        )

    def save(self, state: Any, progress: Progress) -> None:
        """Begins to write `state`, arrays of one replica, and returns.

        Raises:
          UserError: this write, or the one before it, failed.
        """
        with self._writing():
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=dataclasses.asdict(progress),
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise UserError(f"cannot write a checkpoint in {self._folder}: {error}") from error

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          UserError: the last write failed.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None where there is none."""
        return self._manager.latest_step()

    def progress(self, step: int) -> Progress:
        """Reads what is known about the checkpoint at `step`."""
        return Progress(**self._manager.metrics(step))

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state at `step` as NumPy arrays.

        Args:
          step: of the checkpoint.
          like: a tree of the same structure, shapes and dtypes.

        Raises:
          UserError: the checkpoint does not fit `like`, or cannot be read.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        try:
            item = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        except (OSError, ValueError, KeyError) as error:
            first_line = str(error).strip().split("\n")[0]
            raise UserError(f"{self._folder}/{step} cannot be read: {first_line}") from error
        return jax.device_get(item.state)

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder."""
        self._manager.close()
