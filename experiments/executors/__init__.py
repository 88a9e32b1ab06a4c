"""Executors run a sweep's processes: on this machine, a Ray cluster or a cloud."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.plan import PlannedRun


@dataclass(frozen=True)
class Work:
    """The work of one process: `python` with these arguments trains these runs."""

    name: str  # the run's folder, or the shard of the sweep
    arguments: tuple[str, ...]
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    status: int  # see bn_vgg/errors.py; negative: the signal that ended it
    error: str = ""  # one line
    lost: bool = False  # whether its machine went away, which does not count as an attempt


class Executor:
    """Starts processes in slots, and polls and stops them."""

    poll_seconds = 0.5  # between polls
    # A stopped process finishes its chunk, 15 seconds on a slow CPU, and writes a checkpoint.
    stop_seconds = 90.0

    def __init__(self, out: str, flags: Sequence[str]):
        """`out` is the sweep's folder or address; `flags` are further flags of `bn_vgg.main`."""
        self._out, self._flags = out, flags

    def divide(self, runs: Sequence[PlannedRun]) -> list[Work]:
        """Divides a sweep into processes: one for each run."""
        return [
            Work(run.folder, tuple(run.arguments(self._out, *self._flags)), (run,)) for run in runs
        ]

    def command(self, work: Work) -> str:
        """Returns the shell command that does the same."""
        return shlex.join(["python", *work.arguments])

    def open(self, work: Sequence[Work]) -> list[str]:
        """Finds the hardware. Returns the slots' names, at most one for each work."""
        raise NotImplementedError

    def start(self, work: Work, slot: int) -> Any:
        """Starts a process in a free slot and returns it."""
        raise NotImplementedError

    def poll(self, process: Any) -> Outcome | None:
        """Returns how a process ended; None while it is running."""
        raise NotImplementedError

    def stop(self, process: Any) -> None:
        """Asks a process to save its state and end; it has ended when `poll` says so."""
        raise NotImplementedError
