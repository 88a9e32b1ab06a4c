"""Hands the work of a sweep to an executor's slots, and tries again what failed."""

import collections
import math
import time
from collections.abc import Sequence
from typing import Any

from bn_vgg import cli, stopping
from bn_vgg.errors import EXIT_USER_ERROR, UserError
from bn_vgg.run_dir import Workdir
from experiments import status
from experiments.executors import Ended, Executor, Work
from experiments.plan import PlannedRun
from experiments.state import FAILED, RUNNING, TO_DO, Sweep


class Driver:
    """Keeps every slot busy until nothing is left to do. A failure never stops the others."""

    def __init__(self, executor: Executor, sweep: Sweep, slots: int, attempts: int = 3):
        """`slots` are those of the executor, which is open; `attempts` are at what crashes."""
        self._executor, self._sweep, self._slots = executor, sweep, slots
        self._attempts = attempts
        self._begun: collections.Counter[str] = collections.Counter()
        self._epochs: dict[str, int] = {}  # that were said, by the run's folder
        self._estimated = False
        self._ended = 0
        self._running: dict[int, tuple[Work, Any]] = {}
        self.failed: list[tuple[Work, str]] = []  # that was given up, and why

    def drive(self, work: Sequence[Work], until: float = math.inf) -> None:
        """Returns when all is done or given up, or the time is up.

        Args:
          work: to do, in this order; what failed goes to the end.
          until: by `time.monotonic()`, when what is running is stopped.

        Raises:
          UserError: the first two that ended have met the same error of the user's.
          KeyboardInterrupt: after what was running has been stopped.
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
                    self._say_epochs(each)
                    if ended is not None:
                        del self._running[slot]
                        waiting.extend(self._settle(each, ended))
        finally:
            with stopping.obeyed_already():
                self._stop()

    def _start(self, work: Work, slot: int) -> None:
        self._begun[work.name] += 1
        for run in work.runs:
            self._sweep.note(run, RUNNING)
            self._epochs.setdefault(run.folder, len(self._lines(run)))
        self._running[slot] = work, self._executor.start(work, slot)

    def _settle(self, work: Work, ended: Ended) -> list[Work]:
        """Notes how work ended; returns what to try again of it."""
        unfinished = self._sweep.unfinished()
        left = [run for run in work.runs if run in unfinished]
        if not ended.status and left:
            ended = Ended(1, f"it ended well, but {left[0].folder} has no result of all epochs")
        self._begun[work.name] -= ended.lost  # a machine that goes away is no failure
        again = ended.lost or self._begun[work.name] < self._attempts
        again = again and ended.status not in (0, EXIT_USER_ERROR)
        for run in work.runs:  # of one that is done, its result.json says so
            failed = run in left and not again
            self._sweep.note(run, FAILED if failed else TO_DO, ended.error if run in left else None)
        self._ended += 1
        if ended.status:
            cli.show(f"{work.name}: {ended.error}{'; it will be tried again' * again}")
        if ended.status and not again:
            self.failed.append((work, ended.error))
        alike = len({error.replace(each.name, "") for each, error in self.failed}) == 1
        # Seeds of one name may well fail alike.
        names = {run.name for each, _ in self.failed for run in each.runs}
        alike = alike and (len(names) > 1 or names == {run.name for run in self._sweep.runs})
        if ended.status == EXIT_USER_ERROR and alike and len(self.failed) == self._ended > 1:
            raise UserError(
                f"the first {len(self.failed)} runs ended with the same error, so the others were "
                f"not tried: {self.failed[0][1]}"
            )
        return [work] * again

    def _stop(self) -> None:
        """Stops what is running, and waits until it has kept what it has."""
        for _, process in self._running.values():
            self._executor.stop(process)
        deadline = time.monotonic() + self._executor.stop_seconds
        for work, process in self._running.values():
            while time.monotonic() < deadline and self._executor.poll(process) is None:
                time.sleep(0.1)
            for run in work.runs:
                self._sweep.note(run, TO_DO)
        self._running.clear()

    def _lines(self, run: PlannedRun) -> list[dict[str, Any]]:
        try:
            return Workdir(run.workdir(self._sweep.out), writes=False).read_metrics()
        except UserError:  # a network's disk may be away for a moment
            return []

    def _say_epochs(self, work: Work) -> None:
        """Says a line for each new epoch, and after the first one how long all will take."""
        for run in work.runs:
            lines = self._lines(run)
            for line in lines[self._epochs[run.folder] :]:
                cli.show(status.epoch_line(run, line))
                if not self._estimated:
                    self._estimated = True
                    cli.show(status.summary(self._sweep.runs, self._sweep.states()))
            self._epochs[run.folder] = max(self._epochs[run.folder], len(lines))
