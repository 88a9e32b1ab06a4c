"""Calls of `gcloud`: without a shell, with a limit of time, and to be cut short by Ctrl-C."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from bn_vgg.errors import UserError

# How soon a call notices that it is to be cut short.
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 5


class GcloudError(Exception):
    """A call failed, or what it was to bring about did not happen; the message is one line."""


class NotFoundError(GcloudError):
    """What the call was about does not exist."""


class StoppedError(Exception):
    """The call was cut short, by Ctrl-C."""


class Gcloud:
    """Calls gcloud."""

    def __init__(self, stop: threading.Event | None = None):
        """Prepares.

        Args:
          stop: cuts calls short when it is set; None: nothing does.
        """
        self._stop = stop or threading.Event()

    def run(self, arguments: Sequence[str], *, seconds: float) -> str:
        """Returns what `gcloud ARGUMENTS` writes to standard output.

        Args:
          arguments: of gcloud.
          seconds: that it may take.

        Raises:
          GcloudError: it failed or took longer; NotFoundError: there is no such thing.
          StoppedError: it was cut short.
          UserError: there is no gcloud.
        """
        if self._stop.is_set():
            raise StoppedError
        process = _start(arguments)
        end = time.monotonic() + seconds
        while True:
            try:
                output, errors = process.communicate(timeout=_SECONDS_BETWEEN_LOOKS)
                break
            except subprocess.TimeoutExpired:
                if self._stop.is_set():
                    _end(process)
                    raise StoppedError from None
                if time.monotonic() > end:
                    _end(process)
                    what = " ".join(arguments[:4])
                    raise GcloudError(f"gcloud {what} took more than {seconds:g} s") from None
        if process.returncode:
            reason = _reason(errors, process.returncode)
            is_missing = "NOT_FOUND" in errors or "matched no objects" in errors
            raise (NotFoundError if is_missing else GcloudError)(reason)
        return output


def _start(arguments: Sequence[str]) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            ["gcloud", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C reaches the whole terminal, and a VM's deletion must survive it.
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise UserError(
            "gcloud is not on the PATH: install it (https://cloud.google.com/sdk/docs/install), "
            "then run: gcloud auth login"
        ) from error


def _reason(errors: str, status: int) -> str:
    """The line that says most: details of an API's error may follow it."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("ERROR:")]
    if not lines:
        return f"gcloud ended with status {status}"
    return (marked or lines)[-1].removeprefix("ERROR: ")


def _end(process: subprocess.Popen) -> None:
    """Ends gcloud and the ssh that it has started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.communicate(timeout=_SECONDS_TO_END)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
