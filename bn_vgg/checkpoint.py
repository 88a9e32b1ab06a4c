"""Checkpoints by Orbax: the latest two, and the best two by validation error.

Each has a digest of its content, so that one that was torn or changed on disk is noticed when it is
read, and set aside. Nothing that is read is unpickled or executed.
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

from bn_vgg.errors import UserError, cannot_read, cannot_write, first_line, of_the_system

# Orbax's names for the two parts of a checkpoint, and for the file in the second one.
_STATE, _METRICS, _METRICS_FILE = "state", "metrics", "metrics"
# How TensorStore's errors begin where the system or a network's disk is at fault, not the content.
_OF_THE_SYSTEM = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a resumed run needs to know besides its state."""

    epoch: int = 0  # epochs done
    step: int = 0  # updates done
    valid_error_rate: float = math.inf  # after that epoch; infinite within an epoch
    best_epoch: int = 0  # the first with the lowest validation error so far, from 1
    best_step: int = 0  # the updates done by then; names its checkpoint
    best_error_rate: float = math.inf
    seconds: float = 0.0  # wall time spent on the run so far, over all its processes
    # The leaves of `TrainMetrics` of the epoch in progress; None between epochs.
    within_epoch: list[float] | None = None

    def after_epoch(self, *, step: int, valid_error_rate: float, seconds: float) -> "Progress":
        """Returns the progress one epoch on; of equal errors the earlier is the best."""
        is_best = valid_error_rate < self.best_error_rate
        best = (self.epoch + 1, step, valid_error_rate)
        return Progress(
            self.epoch + 1, step, valid_error_rate,
            *(best if is_best else (self.best_epoch, self.best_step, self.best_error_rate)),
            seconds,
        )  # fmt: skip


class DamagedError(UserError):
    """A checkpoint that is not what was written, or not all of it."""


Checkpoint = tuple[Progress, Any]


def steps(folder: epath.Path) -> list[int]:
    """The steps whose checkpoints are in the folder, whole or not, the newest first."""
    with cannot_read(folder):
        found = folder.iterdir() if folder.exists() else ()
        return sorted((int(x.name) for x in found if x.name.isdigit()), reverse=True)


def read(folder: epath.Path, step: int, like: Any) -> Checkpoint:
    """Reads the checkpoint at `step`: its progress, and its state as NumPy arrays.

    `like` is a tree of the state's structure, shapes and dtypes.

    Raises:
      DamagedError: it is not whole, its content has changed, or it does not fit `like`.
      UserError: the system does not let it be read.
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
        raise DamagedError(f"{path} is not whole: {first_line(error)}") from error
    except Exception as error:  # a changed byte makes Orbax raise a dozen types
        why = first_line(error)[:300]
        if of_the_system(error) or why.startswith(_OF_THE_SYSTEM):
            raise UserError(
                f"cannot read {path}: {why}; nothing was changed: run the same command again when "
                "it can be read"
            ) from error
        raise DamagedError(f"{path} cannot be read: {why}") from error
    if progress.step != step or digest != digest_of(progress, state):
        raise DamagedError(f"{path} is damaged: it does not hold what was written")
    return progress, state


def _check_shape(found: np.ndarray, wanted: jax.ShapeDtypeStruct) -> None:
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(
            f"an array is {found.dtype}{found.shape}, not {wanted.dtype}{wanted.shape}"
        )


def digest_of(progress: Progress, state: Any) -> str:
    """Returns a digest of all that a run goes on from, independent of how it is stored."""
    found = hashlib.blake2b(json.dumps(dataclasses.asdict(progress)).encode(), digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def read_all(folder: epath.Path, like: Any) -> tuple[dict[int, Checkpoint], dict[int, UserError]]:
    """Reads all checkpoints, the newest first: the intact ones, and what is wrong with others."""
    found: dict[int, Checkpoint] = {}
    wrong: dict[int, UserError] = {}
    for step in steps(folder):
        try:
            found[step] = read(folder, step, like)
        except DamagedError as error:
            wrong[step] = error
    return found, wrong


def restore(folder: epath.Path, aside: epath.Path, like: Any) -> tuple[Progress, Any, list[str]]:
    """Reads the newest checkpoint that is intact, and whose best one is intact too.

    Damaged checkpoints, and those after the returned one, are moved to the folder `aside`. Returns
    progress, state, and what was wrong with newer checkpoints; `like` itself where there is none.

    Raises:
      UserError: there are checkpoints, but none is intact, or not the best one, or the system does
        not let one be read; nothing was moved.
    """
    found, wrong = read_all(folder, like)
    if not found and not wrong:
        return Progress(), like, []
    step = next((s for s in found if found[s][0].best_step in (*found, 0)), None)
    again = "nothing was changed: name another --workdir to train from the seed"
    if not found:
        raise UserError(
            f"{next(iter(wrong.values()))}; no checkpoint of this run is intact; {again}"
        )
    if step is None:
        best = found[max(found)][0].best_step
        why = wrong.get(best, f"{folder / str(best)} is missing")
        raise UserError(
            f"{why}; it was the run's best, without which there is no result. The newest that is "
            f"intact is {max(found)}: python -m bn_vgg.export --which=latest; {again}"
        )
    if jax.process_count() > 1:  # nobody may still be reading what is moved
        multihost_utils.sync_global_devices("checkpoints are read")
    if jax.process_index() == 0:
        for other in [*wrong, *(s for s in found if s > step)]:
            logging.info("setting checkpoint %d aside, in %s", other, aside)
            aside.mkdir(parents=True, exist_ok=True)
            (folder / str(other)).rename(aside / f"{other}-{len(list(aside.iterdir()))}")
    return *found[step], [str(why) for s, why in wrong.items() if s > step]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """The loop asks that, see `multihost.preempted`: JAX expects each number just once."""
        return False


class Checkpointer:
    """Writes a run's checkpoints into one folder while training goes on, each named by its step.

    Every host takes part in saving. It is to be opened after `restore`: Orbax reads all checkpoints
    that are there.
    """

    def __init__(self, folder: epath.Path):
        def best_last(metrics):  # the earlier of two equals is the better
            return -metrics["valid_error_rate"], -metrics["step"]

        self._folder, self._num_bytes = folder, 0
        # Two of each, so that a run can go on if the latest is damaged.
        keep = AnyPreservationPolicy([LatestN(2), BestN(get_metric_fn=best_last, n=2)])
        # Without `best_fn` Orbax neither writes metrics nor reads them.
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=best_last)
        with self._writing():
            self._manager = _Manager(folder, options=options)

    def save(self, state: Any, progress: Progress) -> None:
        """Begins to write `state`, NumPy arrays, and returns.

        Raises:
          UserError: this write, or the one before it, failed.
        """
        metadata = dataclasses.asdict(progress) | {"digest": digest_of(progress, state)}
        self._num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self._writing():
            if progress.step in self._manager.all_steps():  # of an epoch not yet evaluated
                self._manager.delete(progress.step)
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state)}),
                metrics=metadata,
            )

    def wait(self) -> None:
        """Returns when all that was saved is on disk, or raises a UserError as `save` does."""
        with self._writing():
            self._manager.wait_until_finished()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        # What a full disk raises depends on who notices it.
        size = f" of {self._num_bytes:,} bytes" if self._num_bytes else ""
        folder = "" if "://" in str(self._folder) else self._folder
        return cannot_write(f"a checkpoint{size} in {self._folder}", (Exception,), folder)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Waits for what is being written; a UserError if that fails and nothing else had."""
        try:
            with self._writing():
                self._manager.close()
        except UserError:
            if error is None:
                raise
            logging.info("after an error, this one as well", exc_info=True)
