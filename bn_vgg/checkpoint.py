"""Checkpoints by Orbax: the latest two, and the best two by validation error.

Each holds a digest of its content. A checkpoint that is incomplete or was changed on disk is
detected when it is read, and moved to another folder. Nothing is unpickled or executed.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from bn_vgg import errors
from bn_vgg.errors import UserError, first_line, wrap_read_errors, wrap_write_errors

# Orbax's names of the two parts of a checkpoint, and of the file in the second part.
_STATE, _METRICS, _METRICS_FILE = "state", "metrics", "metrics"
# TensorStore's errors begin with these if the system or the network failed, not the content.
_IO_ERROR_PREFIXES = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come: what it needs to resume besides its state."""

    epoch: int = 0  # epochs done
    step: int = 0  # updates done
    valid_error_rate: float = math.inf  # after this epoch; infinite within an epoch
    best_epoch: int = 0  # the first with the lowest validation error so far, from 1
    best_step: int = 0  # updates done at its end, the name of its checkpoint
    best_error_rate: float = math.inf
    seconds: float = 0.0  # wall time of the run so far, over all its starts
    # The leaves of `TrainMetrics` within an epoch; None between epochs.
    within_epoch: list[float] | None = None

    def after_epoch(self, *, step: int, valid_error_rate: float, seconds: float) -> "Progress":
        """Returns the progress after one more epoch; of equal errors the earliest is the best."""
        is_best = valid_error_rate < self.best_error_rate
        best = (self.epoch + 1, step, valid_error_rate)
        return Progress(
            self.epoch + 1, step, valid_error_rate,
            *(best if is_best else (self.best_epoch, self.best_step, self.best_error_rate)),
            seconds,
        )  # fmt: skip


class DamagedError(UserError):
    """A checkpoint is incomplete, or differs from what was written."""


Checkpoint = tuple[Progress, Any]


def list_steps(folder: epath.Path) -> list[int]:
    """Returns the steps of all checkpoints in the folder, the newest first; some may be damaged."""
    with wrap_read_errors(folder):
        found = folder.iterdir() if folder.exists() else ()
        return sorted((int(x.name) for x in found if x.name.isdigit()), reverse=True)


def read(folder: epath.Path, step: int, like: Any) -> Checkpoint:
    """Reads the checkpoint at `step`: its progress, and its state as NumPy arrays.

    `like` is a tree with the state's structure, shapes and dtypes.

    Raises:
      DamagedError: it is incomplete, its content has changed, or it does not fit `like`.
      UserError: an I/O error.
    """
    path = folder / str(step)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    try:
        metadata = json.loads((path / _METRICS / _METRICS_FILE).read_text())
        digest = metadata.pop("digest")
        progress = Progress(**metadata)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            state = reader.restore(path / _STATE, args=ocp.args.StandardRestore(abstract))
        state = jax.device_get(state)
        jax.tree.map(_check_shape, state, abstract)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path} is incomplete: {first_line(error)}") from error
    except Exception as error:  # a damaged file makes Orbax raise many types
        why = first_line(error)[:300]
        if errors.is_io_error(error) or why.startswith(_IO_ERROR_PREFIXES):
            raise errors.storage_error(
                error, f"cannot read {path} (nothing was changed)"
            ) from error
        raise DamagedError(f"{path} cannot be read: {why}") from error
    if progress.step != step or digest != compute_digest(progress, state):
        raise DamagedError(f"{path} is damaged: it does not hold what was written")
    return progress, state


def _check_shape(found: np.ndarray, wanted: jax.ShapeDtypeStruct) -> None:
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(
            f"an array is {found.dtype}{found.shape}, not {wanted.dtype}{wanted.shape}"
        )


def compute_digest(progress: Progress, state: Any) -> str:
    """Returns a digest of the progress and the state, independent of how they are stored."""
    found = hashlib.blake2b(json.dumps(dataclasses.asdict(progress)).encode(), digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def read_all(folder: epath.Path, like: Any) -> tuple[dict[int, Checkpoint], dict[int, UserError]]:
    """Reads all checkpoints: the intact ones, and the errors of the damaged ones, by step."""
    found: dict[int, Checkpoint] = {}
    damaged: dict[int, UserError] = {}
    for step in list_steps(folder):
        try:
            found[step] = read(folder, step, like)
        except DamagedError as error:
            damaged[step] = error
    return found, damaged


def restore(
    folder: epath.Path, damaged_folder: epath.Path, like: Any
) -> tuple[Progress, Any, list[str]]:
    """Reads the newest intact checkpoint whose best checkpoint is intact, too.

    Damaged checkpoints, and those newer than the returned one, are moved to `damaged_folder`.

    Returns:
      The progress, the state, and the errors of newer checkpoints. Without any checkpoint the
      state is `like` itself.

    Raises:
      UserError: no checkpoint is intact, or the best one is not, or an I/O error; nothing was
        moved.
    """
    found, damaged = read_all(folder, like)
    if not found and not damaged:
        return Progress(), like, []
    step = next((s for s in found if found[s][0].best_step in (*found, 0)), None)
    again = "nothing was changed: name another --workdir to train from the seed"
    if not found:
        raise UserError(
            f"{next(iter(damaged.values()))}; no checkpoint of this run is intact; {again}"
        )
    if step is None:
        best = found[max(found)][0].best_step
        why = damaged.get(best, f"{folder / str(best)} is missing")
        raise UserError(
            f"{why}; it was the run's best, without which there is no result. The newest that is "
            f"intact is {max(found)}; {again}"
        )
    if jax.process_count() > 1:  # another process may still be reading
        multihost_utils.sync_global_devices("checkpoints are read")
    if jax.process_index() == 0:
        for other in [*damaged, *(s for s in found if s > step)]:
            logging.info("moving checkpoint %d to %s", other, damaged_folder)
            damaged_folder.mkdir(parents=True, exist_ok=True)
            number = len(list(damaged_folder.iterdir()))
            (folder / str(other)).rename(damaged_folder / f"{other}-{number}")
    return *found[step], [str(why) for s, why in damaged.items() if s > step]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: the loop asks JAX itself, see `multihost.preempted`."""
        return False


class Checkpointer:
    """Writes a run's checkpoints to one folder, each named by its step, while training goes on.

    All hosts take part in saving. Open it after `restore`, because Orbax reads all checkpoints in
    the folder.
    """

    def __init__(self, folder: epath.Path):
        def score(metrics):  # higher is better; the earliest step wins ties
            return -metrics["valid_error_rate"], -metrics["step"]

        self._folder, self._num_bytes = folder, 0
        # Two of each, so that a run can resume if the latest is damaged.
        keep = AnyPreservationPolicy([LatestN(2), BestN(get_metric_fn=score, n=2)])
        # Without `best_fn` Orbax ignores metrics.
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=score)
        with self._writing():
            self._manager = _Manager(folder, options=options)

    def save(self, state: Any, progress: Progress) -> None:
        """Begins to write `state`, NumPy arrays, and returns.

        Raises:
          UserError: this write or the previous one failed.
        """
        metadata = dataclasses.asdict(progress) | {"digest": compute_digest(progress, state)}
        self._num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self._writing():
            if progress.step in self._manager.all_steps():  # saved before its epoch was evaluated
                self._manager.delete(progress.step)
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state)}),
                metrics=metadata,
            )

    def wait(self) -> None:
        """Waits until everything is on disk; raises a UserError as `save` does."""
        with self._writing():
            self._manager.wait_until_finished()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        # On a full disk Orbax and TensorStore raise errors of various types.
        size = f" of {self._num_bytes:,} bytes" if self._num_bytes else ""
        folder = "" if "://" in str(self._folder) else self._folder
        return wrap_write_errors(f"a checkpoint{size} in {self._folder}", (Exception,), folder)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Waits for the last write. Its UserError is only logged if there was an error before."""
        try:
            with self._writing():
                self._manager.close()
        except UserError:
            if error is None:
                raise
            logging.info("closing the checkpoints failed, too", exc_info=True)
