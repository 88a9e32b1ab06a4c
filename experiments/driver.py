"""Hands the work of a sweep to an executor's slots, and tries again what failed."""

import collections
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from bn_vgg.errors import EXIT_USER_ERROR, UserError
from bn_vgg.run_dir import Workdir
from experiments import status
from experiments.executors import Ended, Executor, Work
from experiments.plan import PlannedRun
from experiments.state import FAILED, RUNNING, TO_DO, DriverState, read_states, unfinished

# Attempts at what crashes. A machine that goes away does not count.
ATTEMPTS = 3


class Driver:
    """Keeps every slot busy until nothing is left to do. A failure never stops the others.

    Attributes:
      failed: work that was given up, and why.
    """

    def __init__(
        self, executor: Executor, state: DriverState, out: str, say: Callable[[str], None],
        attempts: int = ATTEMPTS,
    ):  # fmt: skip
        """`executor` is open; `state` is where attempts are noted; `out` is the sweep's folder."""
        self._executor, self._state, self._out, self._say = executor, state, out, say
        self._attempts = attempts
        self._begun: collections.Counter[str] = collections.Counter()
        self._epochs: dict[str, int] = {}
        self._estimated = False
        self._ended: list[tuple[Work, Ended]] = []
        self._running: dict[int, tuple[Work, Any]] = {}
        self.failed: list[tuple[Work, str]] = []

    def drive(
        self, work: Sequence[Work], runs: list[PlannedRun], slots: int, until: float = math.inf
    ) -> None:
        """Returns when all is done or given up, or the time is up.

        Args:
          work: to do, in this order; what failed goes to the end.
          runs: of the whole sweep, for the estimate.
          slots: of the executor.
          until: by `time.monotonic()`, when what is running is stopped.

        Raises:
          UserError: the first two that ended have met the same error of the user's.
          KeyboardInterrupt: after what was running has been stopped.
        """
        waiting = collections.deque(work)
        try:
            while (waiting or self._running) and time.monotonic() < until:
                for slot in range(slots):
                    if waiting and slot not in self._running:
                        self._start(waiting.popleft(), slot)
                time.sleep(min(self._executor.poll_seconds, max(0, until - time.monotonic())))
                waiting.extend(self._poll(runs, slots))
        finally:
            self._stop()

    def _start(self, work: Work, slot: int) -> None:
        self._begun[work.name] += 1
        for run in work.runs:
            self._state.note(run.folder, RUNNING)
            if run.folder not in self._epochs:
                self._epochs[run.folder] = len(self._lines(run))
        self._running[slot] = work, self._executor.start(work, slot)

    def _poll(self, runs: list[PlannedRun], slots: int) -> list[Work]:
        """Looks at what is running; returns what has to be tried again."""
        again = []
        for slot, (work, process) in list(self._running.items()):
            ended = self._executor.poll(process)
            if self._say_epochs(work) and not self._estimated:
                self._estimated = True
                states = read_states(self._out, runs)
                self._say(status.summary(runs, states, min(slots, len(runs))))
            if ended is not None:
                del self._running[slot]
                if self._settle(work, ended):
                    again.append(work)
        return again

    def _settle(self, work: Work, ended: Ended) -> bool:
        """Notes how work ended; returns whether to try it again."""
        left = unfinished(self._out, list(work.runs))
        if not ended.status and left:
            ended = Ended(1, f"it ended well, but {left[0].folder} has no result of all epochs")
        self._ended.append((work, ended))
        self._begun[work.name] -= ended.lost
        again = ended.lost or self._begun[work.name] < self._attempts
        again = again and ended.status not in (0, EXIT_USER_ERROR)
        for run in work.runs:
            if run in left:
                self._state.note(run.folder, TO_DO if again else FAILED, ended.error)
            else:
                self._state.note(run.folder, TO_DO)  # its result.json says that it is done
        if ended.status:
            self._say(f"{work.name}: {ended.error}{'; it will be tried again' * again}")
        if ended.status and not again:
            self.failed.append((work, ended.error))
            self._refuse_all()
        return again

    def _refuse_all(self) -> None:
        """Raises a UserError if every run seems to meet the same one."""
        errors = {
            ended.error.replace(work.name, "") if ended.status == EXIT_USER_ERROR else None
            for work, ended in self._ended
        }
        if len(self._ended) > 1 and len(errors) == 1 and None not in errors:
            raise UserError(
                f"the first {len(self._ended)} runs ended with the same error, so the others were "
                f"not tried: {self._ended[0][1].error}"
            )

    def _stop(self) -> None:
        """Stops what is running, and waits until it has kept what it has."""
        for _, process in self._running.values():
            self._executor.stop(process)
        deadline = time.monotonic() + self._executor.stop_seconds
        for work, process in self._running.values():
            while time.monotonic() < deadline and self._executor.poll(process) is None:
                time.sleep(0.1)
            for run in work.runs:
                self._state.note(run.folder, TO_DO)
        self._running.clear()

    def _lines(self, run: PlannedRun) -> list[dict[str, Any]]:
        try:
            return Workdir(run.workdir(self._out), writes=False).read_metrics()
        except (OSError, UserError):  # a network's disk may be away for a moment
            return []

    def _say_epochs(self, work: Work) -> bool:
        """Says a line for each new epoch; returns whether there was one."""
        said = False
        for run in work.runs:
            lines = self._lines(run)
            for line in lines[self._epochs[run.folder] :]:
                self._say(_epoch_line(run, line))
                said = True
            self._epochs[run.folder] = max(self._epochs[run.folder], len(lines))
        return said


def _epoch_line(run: PlannedRun, line: dict[str, Any]) -> str:
    said = (
        f"  epoch {line['epoch']:2}/{run.num_epochs}"
        f"  train error {line['train/error_rate']:.3f}  valid error {line['valid/error_rate']:.3f}"
    )
    return status.shorten(run.folder, status.WIDTH - len(said)) + said
