"""Errors that a command reports in one line, and its exit statuses."""

import contextlib
import os
import reprlib
import shutil
import signal
from collections.abc import Iterator, Mapping
from typing import Any

EXIT_BUG = 1
EXIT_USER_ERROR = 2
# `predict` could not read some of the images; it predicted all others.
EXIT_UNREADABLE = 3
# Another host of the run hangs or is gone. The same command resumes the run.
EXIT_HOST_LOST = 4
# Remote storage did not answer, which may pass: sweeps try such a run again.
EXIT_STORAGE = 75  # EX_TEMPFAIL of sysexits.h
# A shell's status for a process that a signal has ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


class UserError(Exception):
    """An error that the user can fix: a wrong path, name, value or file.

    The message is one line: what happened, where, and what to do next.
    """

    status = EXIT_USER_ERROR  # with which a command ends

    def __init__(self, message: str):
        # File names and messages of other libraries may contain line breaks.
        super().__init__(" ".join(message.splitlines()))


class UnavailableError(UserError):
    """Remote storage does not answer, perhaps only for a while."""

    status = EXIT_STORAGE


class NotFoundError(UserError):
    """A file or folder that the user named does not exist."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the command, which exits with `status`. A run saves its state before."""

    def __init__(self, received: signal.Signals, message: str):
        super().__init__(f"{message}; run the same command again to go on")
        self.status = 128 + received


def describe_error(error: BaseException) -> str:
    """Returns an error's type and the first line of its message."""
    # The last line of a formatted traceback would not do: JAX appends notes to its errors.
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"


def one_line(error: BaseException) -> str:
    """Returns an error's whole message as one line; its type's name if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message; its type's name if there is no message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def describe_differences(mapping: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Lists the keys whose values differ: `seed is 1, not 0`; empty if the mappings are equal."""

    def shown(mapping, name: str) -> str:
        value = mapping.get(name, "missing")
        return value if isinstance(value, str) else reprlib.repr(value)

    return "; ".join(
        f"{name} is {shown(mapping, name)}, not {shown(reference, name)}"
        for name in sorted(mapping.keys() | reference.keys())
        if mapping.get(name) != reference.get(name)
    )


@contextlib.contextmanager
def wrap_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turns every exception into a UserError whose message begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            advice = f"; pip install {error.name.partition('.')[0]}"
        raise UserError(f"{what}: {describe_error(error)}{advice}") from error


@contextlib.contextmanager
def wrap_import_errors(extra: str) -> Iterator[None]:
    """Turns a failed import into a UserError that names the extra of this project to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: pip install -e '.[{extra}]'") from error


def is_io_error(error: Exception) -> bool:
    """Whether reading or writing failed: an OSError, or TensorFlow's own for gs:// paths."""
    return isinstance(error, OSError) or type(error).__module__.startswith("tensorflow.")


def storage_error(error: Exception, what: str) -> UserError:
    """Returns the error to raise for an I/O error: `what`, such as `cannot read PATH`, and why."""
    passes = isinstance(error, ConnectionError | TimeoutError)
    # The first are TensorFlow's types, the second TensorStore's messages.
    passes |= type(error).__name__ in ("UnavailableError", "DeadlineExceededError", "AbortedError")
    passes |= str(error).startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))
    why = getattr(error, "strerror", None) or first_line(error)
    message = f"{what}: {why}; run the same command again when that is possible"
    return (UnavailableError if passes else UserError)(message)


@contextlib.contextmanager
def wrap_read_errors(what: str | os.PathLike) -> Iterator[None]:
    """Turns I/O errors, except a FileNotFoundError, into a UserError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not is_io_error(error):
            raise
        raise storage_error(error, f"cannot read {what}") from error


@contextlib.contextmanager
def wrap_write_errors(
    what: str, kinds: tuple[type[Exception], ...] = (), folder: str | os.PathLike = ""
) -> Iterator[None]:
    """Turns I/O errors, and those of `kinds`, into a UserError; it states `folder`'s free space."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (is_io_error(error) or isinstance(error, kinds)):
            raise
        with contextlib.suppress(OSError):  # the folder itself may be gone
            what += f" ({shutil.disk_usage(folder).free:,} bytes are free)" if folder else ""
        raise storage_error(error, f"cannot write {what}") from error
