"""Runs the work of a sweep on an executor, and repeats what failed."""

import collections
import math
import time
from collections.abc import Sequence
from typing import Any

from bn_vgg import cli, stopping
from bn_vgg.errors import EXIT_USER_ERROR, UserError
from bn_vgg.run_dir import Workdir
from experiments import status
from experiments.executors import Executor, Outcome, Work
from experiments.plan import PlannedRun
from experiments.state import FAILED, RUNNING, TO_DO, Sweep


class Driver:
    """Keeps all slots busy until everything is done. A failed run does not stop the others."""

    def __init__(self, executor: Executor, sweep: Sweep, slots: int, attempts: int = 3):
        """`slots` is the number of slots of the open executor; `attempts` are for each work."""
        self._executor, self._sweep, self._slots = executor, sweep, slots
        self._attempts = attempts
        self._started: collections.Counter[str] = collections.Counter()
        self._epochs: dict[str, int] = {}  # epochs reported so far, by the run's folder
        self._estimated = False
        self._ended = 0
        self._running: dict[int, tuple[Work, Any]] = {}
        self.failed: list[tuple[Work, str]] = []  # with the error of the last attempt

    def drive(self, work: Sequence[Work], until: float = math.inf) -> None:
        """Runs until everything is done or has failed, or the time is up.

        Args:
          work: in the order to start it; failed work is repeated at the end.
          until: a time of `time.monotonic()`, at which running work is stopped.

        Raises:
          UserError: all processes so far, at least two, ended with the same user error.
          KeyboardInterrupt: after the running processes were stopped.
        """
        waiting = collections.deque(work)
        try:
            while (waiting or self._running) and time.monotonic() < until:
                for slot in range(self._slots):
                    if waiting and slot not in self._running:
                        self._start(waiting.popleft(), slot)
                time.sleep(min(self._executor.poll_seconds, max(0, until - time.monotonic())))
                for slot, (each, process) in list(self._running.items()):
                    ended = self._executor.poll(process)
                    self._report_epochs(each)
                    if ended is not None:
                        del self._running[slot]
                        waiting.extend(self._handle_outcome(each, ended))
        finally:
            with stopping.ignore_termination():
                self._stop()

    def _start(self, work: Work, slot: int) -> None:
        self._started[work.name] += 1
        for run in work.runs:
            self._sweep.record(run, RUNNING)
            self._epochs.setdefault(run.folder, len(self._lines(run)))
        self._running[slot] = work, self._executor.start(work, slot)

    def _handle_outcome(self, work: Work, ended: Outcome) -> list[Work]:
        """Records how work ended; returns the work to repeat."""
        unfinished = self._sweep.unfinished()
        left = [run for run in work.runs if run in unfinished]
        if not ended.status and left:
            ended = Outcome(1, f"it ended well, but {left[0].folder} has no result of all epochs")
        self._started[work.name] -= ended.lost  # the loss of a machine is no attempt
        again = ended.lost or self._started[work.name] < self._attempts
        again = again and ended.status not in (0, EXIT_USER_ERROR)
        for run in work.runs:  # that a run is done is read from its result.json
            failed = run in left and not again
            self._sweep.record(
                run, FAILED if failed else TO_DO, ended.error if run in left else None
            )
        self._ended += 1
        if ended.status:
            advice = "; it will be tried again" if again else ""
            cli.show(f"{work.name}: {ended.error}{advice}")
        if ended.status and not again:
            self.failed.append((work, ended.error))
        alike = len({error.replace(each.name, "") for each, error in self.failed}) == 1
        # Several seeds of one cell may fail with the same error, but other cells may not.
        names = {run.name for each, _ in self.failed for run in each.runs}
        alike = alike and (len(names) > 1 or names == {run.name for run in self._sweep.runs})
        if ended.status == EXIT_USER_ERROR and alike and len(self.failed) == self._ended > 1:
            raise UserError(
                f"the first {len(self.failed)} runs ended with the same error, so the others were "
                f"not tried: {self.failed[0][1]}"
            )
        return [work] if again else []

    def _stop(self) -> None:
        """Stops the running processes, and waits until they have saved their state."""
        for _, process in self._running.values():
            self._executor.stop(process)
        deadline = time.monotonic() + self._executor.stop_seconds
        for work, process in self._running.values():
            while time.monotonic() < deadline and self._executor.poll(process) is None:
                time.sleep(0.1)
            for run in work.runs:
                self._sweep.record(run, TO_DO)
        self._running.clear()

    def _lines(self, run: PlannedRun) -> list[dict[str, Any]]:
        try:
            return Workdir(run.workdir(self._sweep.out), writes=False).read_metrics()
        except UserError:  # a network disk may be unavailable for a moment
            return []

    def _report_epochs(self, work: Work) -> None:
        """Prints a line for each new epoch, and after the first one the estimated total time."""
        for run in work.runs:
            lines = self._lines(run)
            for line in lines[self._epochs[run.folder] :]:
                cli.show(status.epoch_line(run, line))
                if not self._estimated:
                    self._estimated = True
                    cli.show(status.summary(self._sweep.runs, self._sweep.states()))
            self._epochs[run.folder] = max(self._epochs[run.folder], len(lines))
