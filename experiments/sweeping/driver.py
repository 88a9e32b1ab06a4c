"""Hands the runs of a sweep to slots, and tries those again that failed."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from absl import logging

from bn_vgg.errors import UserError
from experiments.sweeping.backend import Outcome, Say, Slot
from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.state import FAILED, RUNNING, TO_DO, DriverState

# Attempts at a run that fails by itself. A machine that goes away does not count.
ATTEMPTS = 3
_SECONDS_BETWEEN_SIGNS_OF_LIFE = 30
_SECONDS_TO_STOP = 90


class Driver:
    """Keeps every slot busy until nothing is left to do.

    One run's failure never stops the others.
    """

    def __init__(
        self, runs: list[PlannedRun], state: DriverState, say: Say, attempts: int = ATTEMPTS
    ):
        """Prepares.

        Args:
          runs: what is to do, in this order; a run that failed goes to the end.
          state: where attempts are noted.
          say: shows a line to a person.
          attempts: at each run, at most.
        """
        self._waiting, self._going = deque(runs), 0
        self._state, self._say, self._attempts = state, say, attempts
        self._change = threading.Condition()
        self._stopping = False
        self._bug: BaseException | None = None
        self._unwritten = False
        self.failed: list[PlannedRun] = []

    def drive(self, slots: list[Slot], until: float = math.inf) -> None:
        """Returns when all is done or has failed too often, or the time is up.

        Args:
          slots: to keep busy.
          until: by `time.monotonic()`, when they are stopped.

        Raises:
          KeyboardInterrupt: after the slots were stopped; runs go on at the next start.
          Exception: `say` raised it; after the slots were stopped, too.
        """
        threads = [threading.Thread(target=self._serve, args=(slot, slots)) for slot in slots]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    left = max(0.0, until - time.monotonic())
                    thread.join(min(left, _SECONDS_BETWEEN_SIGNS_OF_LIFE))
                    if time.monotonic() >= until:
                        until = math.inf
                        if not self._stopping:
                            self._stop(slots)
                    with self._change:
                        self._note(self._state.write)
        except BaseException:
            self._stop(slots)
            for thread in threads:
                thread.join(_SECONDS_TO_STOP)
            raise
        finally:
            with self._change:
                self._note(self._state.leave)
        if self._bug is not None:
            raise self._bug

    def _note(self, write: Callable[[], None]) -> None:
        """Writes the state, or says once that it cannot: what is done, runs' own folders say."""
        try:
            write()
            self._unwritten = False
        except UserError as error:
            if not self._unwritten:
                self._unwritten = True
                self._say(f"{error}; the runs go on, --status will not show which")

    def _stop(self, slots: list[Slot]) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
        for slot in slots:
            slot.stop()

    def _serve(self, slot: Slot, slots: list[Slot]) -> None:
        try:
            while (run := self._take(slot)) is not None:
                self._settle(run, self._execute(slot, run))
        except BaseException as error:
            # A run that nobody answers for would keep the other slots waiting.
            self._bug = error
            self._stop(slots)
        finally:
            slot.close()

    def _execute(self, slot: Slot, run: PlannedRun) -> Outcome:
        try:
            return slot.execute(run)
        except UserError as error:
            return Outcome(str(error))
        except Exception as error:  # a bug, which must not end the other runs
            logging.exception("%s on %s", run.folder, slot.name)
            return Outcome(f"{type(error).__name__}: {error}")

    def _take(self, slot: Slot) -> PlannedRun | None:
        """Waits for a run to do; None when there will be none any more."""
        with self._change:
            while not self._waiting and self._going and not self._stopping:
                self._change.wait()
            if self._stopping or not self._waiting:
                return None
            run = self._waiting.popleft()
            self._going += 1
            noted = self._state.runs.setdefault(run.folder, {"attempts": 0, "error": None})
            noted |= {"state": RUNNING, "attempts": noted["attempts"] + 1, "where": slot.name}
            self._note(self._state.write)
            return run

    def _settle(self, run: PlannedRun, outcome: Outcome) -> None:
        with self._change:
            self._going -= 1
            noted = self._state.runs[run.folder]
            noted["error"] = outcome.error
            if self._stopping:
                noted |= {"state": TO_DO, "error": None}
            elif outcome.error is None:
                noted["state"] = TO_DO  # its own result.json says that it is done
            elif outcome.lost or noted["attempts"] < self._attempts:
                noted["state"] = TO_DO
                if outcome.lost:
                    noted["attempts"] -= 1
                self._waiting.append(run)
                self._say(f"{run.folder}: {outcome.error}; it will be tried again")
            else:
                noted["state"] = FAILED
                self.failed.append(run)
                self._say(
                    f"{run.folder}: {outcome.error}; given up after {self._attempts} attempts"
                )
            self._note(self._state.write)
            self._change.notify_all()
