"""This machine: worker processes that each make one run after the other.

A worker keeps its compiled programs, so that a cell's second seed compiles nothing. Each has
a GPU of its own, or its share of the processor's cores; a TPU's chips serve one run together.
What goes wrong in a run ends that run alone; a worker that dies is replaced.
"""

import multiprocessing
import os
import shlex
import signal
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from bn_vgg import cli
from bn_vgg.errors import EXIT_TERMINATED
from experiments.sweeping.backend import Outcome, Say, Slot
from experiments.sweeping.plan import PlannedRun

# Cores for each run at once. This network's layers are small: two runs on a core each get
# through as much as one after the other on both, with dropout 15% more (measured on 2 cores);
# one run on two is done sooner.
_CORES_A_RUN = 2
_CONTEXT = multiprocessing.get_context("spawn")
# A worker keeps what it has after the dispatch in progress, which takes a slow CPU 15 seconds at
# the published size.
_SECONDS_TO_DIE = 60


@dataclass(frozen=True)
class Share:
    """What of the machine a worker gets.

    Attributes:
      name: for a person.
      environment: variables to set before JAX looks for devices.
      cores: processor cores to keep to; none: all.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


class Local:
    """The backend."""

    def __init__(self, out: str, flags: list[str], cache_folder: Path, jobs: int | None = None):
        """Prepares.

        Args:
          out: the sweep's folder.
          flags: of `bn_vgg.main`, besides the configuration and the workdir.
          cache_folder: of decoded images and compiled programs.
          jobs: runs at once; None: as many as the devices serve well.
        """
        self._out, self._flags, self._cache_folder, self._jobs = out, flags, cache_folder, jobs

    def commands(self, runs: list[PlannedRun]) -> list[str]:
        """The commands that make the same runs, one by one."""
        return [shlex.join(["python", *run.arguments(self._out, *self._flags)]) for run in runs]

    def slots(self, runs: list[PlannedRun], say: Say) -> list[Slot]:
        """A slot for each share of the machine."""
        platform, count = _ask(_describe_devices)
        shares = share_out(platform, count, self._jobs, cli.usable_cores())[: len(runs)]
        on = shares[0].name if len(shares) == 1 else f"{len(shares)} at once"
        say(f"{len(runs)} runs to do on {platform}, {on}")
        return [_Worker(share, self._out, self._flags, self._cache_folder, say) for share in shares]

    def close(self) -> None:
        """See `Backend`: the slots share nothing."""


def share_out(platform: str, count: int, jobs: int | None, cores: list[int]) -> list[Share]:
    """Shares the machine out.

    Args:
      platform: JAX's name of it.
      count: its devices.
      jobs: shares that are wanted; None: as many as the devices serve well.
      cores: the processor's, that may be used.
    """
    if platform == "cpu":
        jobs = min(jobs or max(1, len(cores) // _CORES_A_RUN), len(cores))
        if jobs == 1:
            return [Share("all cores")]
        parts = [tuple(cores[i::jobs]) for i in range(jobs)]
        return [Share(f"core {','.join(map(str, part))}", cores=part) for part in parts]
    if platform == "gpu":
        jobs = min(jobs or count, count)
        return [Share(f"GPU {i}", {"CUDA_VISIBLE_DEVICES": i}) for i in _visible_gpus(count)[:jobs]]
    return [Share(f"{count} {platform} device(s)")]


def _visible_gpus(count: int) -> list[str]:
    """What CUDA calls the GPUs that JAX sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


def _ask(function):
    """Calls a function in a process of its own: this one must not hold the devices."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_answer, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError("JAX finds no devices: see the message above") from error
    finally:
        process.join()


def _answer(connection: Connection, function) -> None:
    connection.send(function())


def _describe_devices() -> tuple[str, int]:
    return jax.default_backend(), jax.local_device_count()


class _Worker:
    """A slot: a process that is started when it is first needed, and again when it died."""

    def __init__(self, share: Share, out: str, flags: list[str], cache_folder: Path, say: Say):
        self.name = share.name
        self._share, self._out, self._flags = share, out, flags
        self._cache_folder, self._say = cache_folder, say
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._stopped = False

    def execute(self, run: PlannedRun) -> Outcome:
        """See `Slot`."""
        connection = self._start()
        to_do = run.arguments(self._out, *self._flags)[2:]
        kind, content = self._exchange(connection, to_do)
        while kind == "say":
            self._say(f"{run.folder}: {content}")
            kind, content = self._exchange(connection)
        return Outcome(content)

    def _exchange(self, connection: Connection, *messages: Any) -> tuple[str, Any]:
        """Sends, and returns the next answer; an outcome where the process is dead."""
        try:
            for message in messages:
                connection.send(message)
            return connection.recv()
        except (EOFError, OSError):  # which one depends on how much of a message it has read
            return "outcome", self._end()

    def stop(self) -> None:
        """See `Slot`."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """See `Slot`."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(_SECONDS_TO_DIE)
            self._process.kill()

    def _start(self) -> Connection:
        if self._process is None or self._connection is None:
            self._connection, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(
                target=work, args=(theirs, self._share, self._cache_folder), daemon=True
            )
            process.start()
            theirs.close()
            self._process = process
            if self._stopped:  # before there was a process to end
                process.terminate()
        return self._connection

    def _end(self) -> str:
        """Says how the process ended, which it did without a word."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        assert process is not None
        assert connection is not None
        connection.close()
        process.join(_SECONDS_TO_DIE)
        process.kill()
        process.join()
        status = process.exitcode or 0
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"its process ended with {how}"


def work(connection: Connection, share: Share, cache_folder: Path) -> None:
    """A worker's life: makes the runs that come through the connection, until it is closed."""
    # These reach the whole terminal; the driver decides what becomes of a run.
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_driver, daemon=True).start()
    os.environ.update(share.environment)
    if share.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share.cores)
    # Here, because the driver is quick without what trains.
    from experiments.sweeping.attempt import Attempts

    attempts = Attempts(cache_folder, lambda line: connection.send(("say", line)))
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            outcome = attempts.make(arguments)
        except KeyboardInterrupt:  # the driver's SIGTERM: the run has kept what it had
            sys.exit(EXIT_TERMINATED)
        connection.send(("outcome", outcome))


def _die_with_the_driver() -> None:
    """A driver that was killed must not leave a run behind that the next one starts again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    print("the sweep's driver is gone; its worker ends", file=sys.stderr)
    os._exit(1)
