"""Where the processes of a sweep are executed: this machine, a Ray cluster, a cloud."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.plan import PlannedRun


@dataclass(frozen=True)
class Work:
    """What one process does: `python` with these arguments makes these runs."""

    name: str  # the run's folder, or which shard of the sweep it is
    arguments: tuple[str, ...]
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # see bn_vgg/errors.py
    error: str = ""  # in a line
    lost: bool = False  # its machine went away, which is no failure of the process


class Executor:
    """Starts processes, each in a slot, and follows them."""

    poll_seconds = 0.5  # between looks at what is running
    # A stopped process finishes its steps, a slow CPU for 15 seconds, and keeps a checkpoint.
    stop_seconds = 90.0

    def __init__(self, out: str, flags: Sequence[str]):
        """`out` is the sweep's folder or address, `flags` are further ones of `bn_vgg.main`."""
        self._out, self._flags = out, flags

    def divide(self, runs: Sequence[PlannedRun]) -> list[Work]:
        """Divides a sweep into processes: one for each run."""
        return [
            Work(run.folder, tuple(run.arguments(self._out, *self._flags)), (run,)) for run in runs
        ]

    def command(self, work: Work) -> str:
        """The shell command that does the same."""
        return shlex.join(["python", *work.arguments])

    def open(self, work: Sequence[Work]) -> list[str]:
        """Looks for the hardware. Returns the slots' names, at most one for each work."""
        raise NotImplementedError

    def start(self, work: Work, slot: int) -> Any:
        """Starts a process in a free slot and returns it."""
        raise NotImplementedError

    def poll(self, process: Any) -> Ended | None:
        """How a process ended; None while it is running."""
        raise NotImplementedError

    def stop(self, process: Any) -> None:
        """Asks a process to keep what it has and end; `poll` tells when it has."""
        raise NotImplementedError
