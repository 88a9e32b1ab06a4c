"""Exceptions that a command turns into one line, and its exit statuses."""

import contextlib
import os
import reprlib
import shutil
import signal
from collections.abc import Iterator, Mapping
from typing import Any

EXIT_BUG = 1
EXIT_USER_ERROR = 2
# Some image could not be read; all others were predicted.
EXIT_UNREADABLE = 3
# Another host of the run hangs or is gone: the same command goes on with the run.
EXIT_HOST_LOST = 4
# What a shell says of a process that the signal ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


class UserError(Exception):
    """Something the user can put right: a wrong path, name, value or file.

    The message is one line: what happened, where, and what to do next.
    """

    def __init__(self, message: str):
        # Names of files and texts of other people's errors may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


class NotThereError(UserError):
    """A file or folder that was named does not exist."""


class Interrupted(KeyboardInterrupt):
    """A signal has stopped the command, a run after its state was kept; exit with `status`."""

    def __init__(self, asked: signal.Signals, message: str):
        super().__init__(f"{message}; run the same command again to go on")
        self.status = 128 + asked


def described(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    # Not the last line of a formatted traceback: JAX adds notes to its errors.
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"


def one_line(error: BaseException) -> str:
    """An error's whole message as one line, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def differences(its: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Says in which names two mappings differ: `seed is 1, not 0`; empty if in none."""

    def shown(mapping, name: str) -> str:
        value = mapping.get(name, "(not there)")
        return value if isinstance(value, str) else reprlib.repr(value)

    return "; ".join(
        f"{name} is {shown(its, name)}, not {shown(others, name)}"
        for name in sorted(its.keys() | others.keys())
        if its.get(name) != others.get(name)
    )


@contextlib.contextmanager
def telling(what: str, advice: str = "") -> Iterator[None]:
    """Turns any exception, as of a user's own code, into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            advice = f"; pip install {error.name.partition('.')[0]}"
        raise UserError(f"{what}: {described(error)}{advice}") from error


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Says which extra of this project to install where an import within finds no package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: pip install -e '.[{extra}]'") from error


def of_the_system(error: Exception) -> bool:
    """Whether the system could not read or write: an OSError, or TensorFlow's of gs:// and such."""
    return isinstance(error, OSError) or type(error).__module__.startswith("tensorflow.")


@contextlib.contextmanager
def cannot_read(what: str | os.PathLike) -> Iterator[None]:
    """Turns the system's errors into a UserError, but for a FileNotFoundError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not of_the_system(error):
            raise
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"cannot read {what}: {why}; run the same command again when it can be read"
        ) from error


@contextlib.contextmanager
def cannot_write(
    what: str, kinds: tuple[type[Exception], ...] = (), folder: str | os.PathLike = ""
) -> Iterator[None]:
    """Turns the system's errors, and those of `kinds`, into a UserError; with `folder`'s room."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (of_the_system(error) or isinstance(error, kinds)):
            raise
        why = error.strerror if isinstance(error, OSError) else None
        with contextlib.suppress(OSError):  # the folder itself may be what is gone
            what += f" ({shutil.disk_usage(folder).free:,} bytes are free)" if folder else ""
        raise UserError(
            f"cannot write {what}: {why or first_line(error)}; run the same command again "
            "when it can be written"
        ) from error
