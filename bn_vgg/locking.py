"""File locks: one process at a time writes a run's folder or builds a cache."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bn_vgg.errors import UserError


@contextlib.contextmanager
def hold_lock(path: Path, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock file at `path`, and describes its owner in a JSON file beside it.

    The operating system releases the lock of a process that dies. If another process holds it,
    `wait` is called with a description of that process before waiting; None means not to wait.

    Raises:
      UserError: another process holds it, and `wait` is None.
      OSError: the folder cannot be written, or its file system has no locks.
    """
    # A soft lock, which is the mere existence of a file, would outlive a killed process.
    lock, about = FileLock(path, fallback_to_soft=False), path.with_suffix(".json")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if wait is None:
            raise UserError(f"{path.parent} is in use by {_owner(about)}") from error
        wait(_owner(about))
        lock.acquire()
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        about.write_text(json.dumps(owner) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            about.unlink()
        lock.release()


def _owner(about: Path) -> str:
    try:
        owner = json.loads(about.read_text())
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError):  # the owner has not written it yet
        return "another process"
