"""One TPU VM: made, adopted, set up, reached, deleted."""

import threading
import time

from absl import logging

from experiments.sweeping import tpu_commands, tpu_remote
from experiments.sweeping.backend import Say
from experiments.sweeping.gcloud import Gcloud, GcloudError, NotFoundError, StoppedError
from experiments.sweeping.tpu_code import BUNDLE, Code
from experiments.sweeping.tpu_commands import ACTIVE, ENDED, ENDING, Commands, Settings
from experiments.sweeping.tpu_remote import Report

# Attempts at what needs the network, where it fails although the VM is there.
TRIES = 5
SECONDS_TO_ASK, SECONDS_TO_COPY, SECONDS_TO_DELETE = 120, 600, 900
_SECONDS_TO_CREATE, _SECONDS_TO_SET_UP = 600, 1800
_SECONDS_TO_KILL = 60


class LostError(Exception):
    """The VM is gone, or does not answer any more; the message is one line."""


class Machine:
    """A TPU VM, of one host or several, by its name."""

    def __init__(self, name: str, settings: Settings, code: Code, say: Say, stop: threading.Event):
        """Prepares, without a call.

        Args:
          name: of the VM and its queued resource.
          settings: of all VMs.
          code: that it is set up with.
          say: shows a line to a person.
          stop: cuts everything short but deleting and `end_runs`.
        """
        self.name, self.commands = name, Commands(settings.zone, settings.project)
        self.gcloud = Gcloud(stop)
        self._settings, self._code, self._say, self._stop = settings, code, say, stop
        # Whether there may be one, which costs money; whether a run may be going on there;
        # whether one may be started.
        self._exists, self._may_run, self._is_ready = False, False, False
        self._hosts = 1

    def prepare(self) -> None:
        """Makes sure that there is a VM and that the code is on it.

        Raises:
          LostError: it was taken away meanwhile.
          GcloudError: it was refused, or setting it up failed.
          StoppedError: it was cut short.
        """
        if self._is_ready:
            return
        while (state := self._state()) in ENDING:
            self.pause()
        is_new = state is None or state in ENDED
        if state in ENDED:
            self._say(f"{self.name}: {state}, deleting it")
            self._delete()
        # Before the call: who knows how much of it was done when it is cut short.
        self._exists, self._may_run = True, not is_new
        if is_new:
            create = self.commands.create(self.name, self._settings)
            self.gcloud.run(create, seconds=_SECONDS_TO_CREATE)
        else:
            self._say(f"{self.name}: is there already ({state})")
        self._wait_until_active()
        if is_new or not self._has_code():
            self._set_up()
        self._is_ready = self._may_run = True

    def ask(self, script: str, seconds: float = SECONDS_TO_ASK) -> list[Report]:
        """Runs a script of `tpu_remote` on all hosts; raises as `reach`."""
        answers = tpu_remote.reports(self.reach(self.commands.ssh(self.name, script), seconds))
        if len(answers) < self._hosts:
            raise GcloudError(f"{len(answers)} of {self._hosts} hosts have answered")
        self._hosts = len(answers)
        return answers

    def reach(self, arguments: list[str], seconds: float) -> str:
        """Calls gcloud, again and again if the VM cannot be reached.

        Args:
          arguments: of gcloud.
          seconds: that each call may take.

        Raises:
          LostError: the VM was taken away, or does not answer any more.
          GcloudError: it never answered, or Google Cloud does not.
          StoppedError: it was cut short.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                return self.gcloud.run(arguments, seconds=seconds)
            except GcloudError as error:
                failure = error
            logging.info("%s: %s", self.name, failure)
            self.require_active()
            if tries_left:
                self.pause()
        if self._is_ready:
            raise LostError(f"{self.name} does not answer any more: {failure}")
        raise failure

    def require_active(self) -> None:
        """Raises LostError unless Google Cloud says that the VM is there."""
        state = self._state()
        if state != ACTIVE:
            raise LostError(f"{self.name} was taken away ({state or 'NOT_FOUND'})")

    def pause(self) -> None:
        """Waits until it is time to look again."""
        if self._stop.wait(self._settings.poll_seconds):
            raise StoppedError

    def end_runs(self) -> bool:
        """Ends what runs on the VM. Returns whether nothing does any more, for sure."""
        if not self._may_run:
            return True
        kill = self.commands.ssh(self.name, tpu_remote.kill())
        try:
            Gcloud().run(kill, seconds=_SECONDS_TO_KILL)
        except GcloudError as error:
            logging.info("%s: %s", self.name, error)
            return False
        return True

    def delete(self) -> None:
        """Deletes the VM if there may be one, or says how to."""
        if not self._exists:
            return
        self._say(f"{self.name}: deleting it")
        try:
            self._delete()
        except GcloudError as error:
            how = tpu_commands.shell(self.commands.delete(self.name))
            self._say(
                f"{self.name}: deleting it failed, and it may go on costing money: {error}; "
                f"run: {how}"
            )

    def _delete(self) -> None:
        self._is_ready = self._may_run = False
        for tries_left in reversed(range(TRIES)):
            try:
                # Not to be cut short: what is left over costs money.
                Gcloud().run(self.commands.delete(self.name), seconds=SECONDS_TO_DELETE)
                break
            except NotFoundError:
                break
            except GcloudError:
                if not tries_left:
                    raise
            time.sleep(min(self._settings.poll_seconds, 10))
        self._exists, self._hosts = False, 1

    def _state(self) -> str | None:
        """The queued resource's; None: there is none."""
        try:
            return self.gcloud.run(self.commands.look(self.name), seconds=SECONDS_TO_ASK).strip()
        except NotFoundError:
            return None

    def _wait_until_active(self) -> None:
        seen = None
        while (state := self._state()) != ACTIVE:
            if state is None:
                raise GcloudError("the queued resource has disappeared")
            if state in ENDED:
                self._delete()
                raise GcloudError(
                    f"the queued resource ended up {state}: is there quota for, and are there, "
                    f"{self._settings.accelerator_type} in {self._settings.zone}?"
                )
            if state != seen:
                self._say(f"{self.name}: {state}")
            seen = state
            self.pause()

    def _has_code(self) -> bool:
        return all(
            answer.rest == self._code.installed for answer in self.ask(tpu_remote.ask_ready())
        )

    def _set_up(self) -> None:
        self._say(f"{self.name}: installing the code")
        send = self.commands.send(self.name, str(self._code.bundle), BUNDLE)
        self.reach(send, SECONDS_TO_COPY)
        script = tpu_remote.set_up(self._code.installed, self._settings.setup)
        for answer in self.ask(script, _SECONDS_TO_SET_UP):
            if answer.status:
                raise GcloudError(
                    f"setting up {answer.host} failed: {answer.rest or 'it said nothing'}"
                )
