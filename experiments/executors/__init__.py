"""Where the processes of a sweep are executed: this machine, a Ray cluster, a cloud."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from experiments.plan import PlannedRun


@dataclass(frozen=True)
class Work:
    """What one process does.

    Attributes:
      name: for a person: a run's folder, or the shard of a sweep.
      arguments: of `python`.
      runs: that it makes.
    """

    name: str
    arguments: tuple[str, ...]
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: its exit status; see bn_vgg/errors.py.
      error: what it said, in a line.
      lost: its machine went away, which is no failure of the process.
    """

    status: int
    error: str = ""
    lost: bool = False


class Executor(Protocol):
    """Starts processes, each in a slot, and follows them.

    Attributes:
      poll_seconds: between looks at what is running.
      stop_seconds: that a stopped process may take to keep its checkpoint.
    """

    poll_seconds: float
    stop_seconds: float

    def divide(self, runs: Sequence[PlannedRun]) -> list[Work]:
        """Divides a sweep into processes."""
        ...

    def command(self, work: Work) -> str:
        """The shell command that does the same."""
        ...

    def open(self, work: Sequence[Work]) -> list[str]:
        """Looks for the hardware. Returns the slots' names, at most one for each work."""
        ...

    def start(self, work: Work, slot: int) -> Any:
        """Starts a process in a free slot and returns it."""
        ...

    def poll(self, process: Any) -> Ended | None:
        """How a process ended; None while it is running."""
        ...

    def stop(self, process: Any) -> None:
        """Asks a process to keep what it has and end; `poll` tells when it has."""
        ...


def one_each(runs: Sequence[PlannedRun], out: str, flags: Sequence[str]) -> list[Work]:
    """A process of `bn_vgg.main` for each run."""
    return [Work(run.folder, tuple(run.arguments(out, *flags)), (run,)) for run in runs]


def python_command(work: Work) -> str:
    """The shell command of a process."""
    return shlex.join(["python", *work.arguments])
