"""A TPU VM as a slot of a sweep: starts a run on it, watches it, brings its files here."""

import os
import tempfile
import threading
import uuid
from pathlib import Path

from absl import logging

from experiments.records import KEPT
from experiments.sweeping import tpu_commands, tpu_remote
from experiments.sweeping.backend import Outcome, Say
from experiments.sweeping.gcloud import GcloudError, NotFoundError, StoppedError
from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.tpu_code import Code
from experiments.sweeping.tpu_commands import Settings
from experiments.sweeping.tpu_machine import (
    SECONDS_TO_ASK,
    SECONDS_TO_COPY,
    TRIES,
    LostError,
    Machine,
)
from experiments.sweeping.tpu_remote import Report

_STOPPED = Outcome("stopped", lost=True)


class TpuSlot:
    """The slot. `experiments.tpu_vm.TpuVms` makes it."""

    def __init__(
        self, name: str, settings: Settings, out: Path, flags: list[str], code: Code, say: Say
    ):
        """Prepares; the VM is made when it is first needed.

        Args:
          name: of the VM.
          settings: of all VMs.
          out: the sweep's folder on this machine.
          flags: of `bn_vgg.main`.
          code: that the VM is set up with.
          say: shows a line to a person.
        """
        self.name = name
        self._settings, self._out, self._flags, self._say = settings, out, flags, say
        self._stop = threading.Event()
        self._machine = Machine(name, settings, code, say, self._stop)

    def execute(self, run: PlannedRun) -> Outcome:
        """See `Slot`."""
        try:
            self._machine.prepare()
            return self._make(run)
        except StoppedError:
            self._machine.end_runs()
            return _STOPPED
        except LostError as error:
            self._machine.delete()
            return Outcome(str(error), lost=True)
        except GcloudError as error:
            # The run will be started again, maybe elsewhere: it must not be going on here.
            if not self._machine.end_runs():
                self._machine.delete()
            return Outcome(f"{self.name}: {error}")

    def stop(self) -> None:
        """See `Slot`."""
        self._stop.set()

    def close(self) -> None:
        """Deletes the VM, or says how to."""
        self._machine.delete()

    def _make(self, run: PlannedRun) -> Outcome:
        attempt = uuid.uuid4().hex[:12]
        arguments = run.arguments(self._settings.bucket, *self._flags)
        self._machine.ask(tpu_remote.start(attempt, arguments))
        self._say(f"{run.folder}: started on {self.name}")
        answers = self._watch(run, attempt)
        failed = [answer for answer in answers if answer.word == "exit" and answer.status]
        is_gone = any(answer.word == "gone" for answer in answers)
        if failed or is_gone:
            # A VM that is taken away ends its processes first.
            self._machine.pause()
            self._machine.require_active()
        if is_gone:
            raise LostError(f"{self.name} has started anew")
        self._collect_log(run, attempt)
        names = self._collect(run)
        if failed:
            # A pod's other hosts may wait for the one that failed, for ever.
            self._machine.end_runs()
            on = f" (on {failed[0].host})" if len(answers) > 1 else ""
            return Outcome(f"{failed[0].rest or 'it said nothing'}{on}")
        if "result.json" not in names:
            where = run.workdir(self._settings.bucket)
            return Outcome(f"it ended well, but there is no result.json in {where}")
        return Outcome()

    def _watch(self, run: PlannedRun, attempt: str) -> list[Report]:
        """Returns when all hosts have ended, or one of them not well."""
        shown = ""
        while True:
            self._machine.pause()
            answers = self._machine.ask(tpu_remote.look(attempt))
            words = {answer.word for answer in answers}
            if words == {"exit"} or "gone" in words or any(a.status for a in answers):
                return answers
            for line in (answer.rest for answer in answers):
                if line.startswith("epoch") and line != shown:
                    shown = line
                    self._say(f"{run.folder}: {line}")
                    self._collect_meanwhile(run)

    def _collect_meanwhile(self, run: PlannedRun) -> None:
        """Lets `--status` here see how far the run is."""
        try:
            self._collect_once(run)
        except GcloudError as error:  # at the end it has to go well
            logging.info("%s: %s", self.name, error)

    def _collect(self, run: PlannedRun) -> list[str]:
        """Brings the run's small files here. Returns their names."""
        for _ in range(TRIES - 1):
            try:
                return self._collect_once(run)
            except GcloudError as error:
                logging.info("%s: %s", self.name, error)
            self._machine.pause()
        return self._collect_once(run)

    def _collect_once(self, run: PlannedRun) -> list[str]:
        source = run.workdir(self._settings.bucket)
        gcloud = self._machine.gcloud
        try:
            found = gcloud.run(tpu_commands.list_objects(source), seconds=SECONDS_TO_ASK)
        except NotFoundError:
            return []
        there = {line.rpartition("/")[2] for line in found.splitlines()}
        names = [name for name in KEPT if name in there]
        if not names:
            return []
        folder = self._out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        # A copy that was cut short must never stand there.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".collected") as partial:
            copy = tpu_commands.copy_objects(source, names, partial)
            gcloud.run(copy, seconds=SECONDS_TO_COPY)
            for name in names:
                os.replace(f"{partial}/{name}", folder / name)
        return names

    def _collect_log(self, run: PlannedRun, attempt: str) -> None:
        """Brings here what the run has said; its numbers do without."""
        folder = self._out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "log.txt.partial"
        log = tpu_remote.log_of(attempt)
        fetch = self._machine.commands.fetch(self.name, log, str(partial))
        try:
            self._machine.gcloud.run(fetch, seconds=SECONDS_TO_COPY)
            partial.replace(folder / "log.txt")
        except GcloudError as error:
            self._say(f"{run.folder}: its log stays on {self.name}: {error}")
        finally:
            partial.unlink(missing_ok=True)
