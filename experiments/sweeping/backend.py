"""What a place offers where runs are executed: a machine, a cluster, TPU VMs."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

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
