"""What a place offers where runs are executed: this machine, a cluster, a cloud."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from experiments.sweeping.plan import PlannedRun

Say = Callable[[str], None]


class Outcome(NamedTuple):
    """How an attempt at a run ended.

    Attributes:
      error: why it failed, in a line; None: it is done.
      lost: the machine went away, through no fault of the run's: it is tried again, and that
        is not counted.
    """

    error: str | None = None
    lost: bool = False


class Slot(Protocol):
    """Where one run at a time is executed. Used by one thread, but for `stop`."""

    name: str

    def execute(self, run: PlannedRun) -> Outcome:
        """Makes a run, or goes on with it, and returns when that has ended."""
        ...

    def stop(self) -> None:
        """Ends what is being executed, soon; `execute` then returns. From another thread."""
        ...

    def close(self) -> None:
        """Lets go of what the slot holds. Called once, by its own thread."""
        ...


class Backend(Protocol):
    """Makes slots."""

    def slots(self, runs: list[PlannedRun], say: Say) -> list[Slot]:
        """Returns the slots that serve these runs best, at most one for each."""
        ...

    def commands(self, runs: list[PlannedRun]) -> list[str]:
        """The shell commands that would be executed, in order, for `--dry-run`."""
        ...

    def close(self) -> None:
        """Lets go of what the slots share. Called when they have ended, or were not made."""
        ...


class EpochReporter:
    """Says which epochs a run elsewhere has finished, by its working directory."""

    def __init__(self, workdir: Workdir, run: PlannedRun, say: Say):
        self._workdir, self._run, self._say = workdir, run, say
        self._epochs = len(self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        # The next look will do where the folder cannot be read just now.
        with contextlib.suppress(OSError, UserError):
            return self._workdir.read_metrics()
        return []

    def say_new(self) -> None:
        """Says a line for each epoch that was not there before."""
        lines = self._lines()
        for line in lines[self._epochs :]:
            self._say(
                f"{self._run.folder}: epoch {line['epoch']}/{self._run.num_epochs}  "
                f"train error {line['train/error_rate']:.3f}  "
                f"valid error {line['valid/error_rate']:.3f}"
            )
        self._epochs = max(self._epochs, len(lines))
