"""Signals that stop a run: Ctrl-C, SIGTERM before a preemption, SIGHUP of a lost terminal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from bn_vgg.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def raise_on_terminate() -> None:
    """Makes SIGTERM and SIGHUP raise `Interrupted`; `nohup` keeps ignoring SIGHUP."""

    def interrupt(number: int, _) -> None:
        raise Interrupted(signal.Signals(number), "terminated")

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


@contextlib.contextmanager
def ignore_termination() -> Iterator[None]:
    """Ignores SIGTERM and SIGHUP within the context, while the process is already stopping."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {each: signal.signal(each, signal.SIG_IGN) for each in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class StopRequest:
    """Records in `signal` the first signal that asks the run to stop; None before."""

    def __init__(self):
        self.signal: signal.Signals | None = None

    def run_and_listen(self, work: Callable[[], Any]) -> Any:
        """Returns `work()`. Records the first signal meanwhile; a later Ctrl-C exits at once.

        Python runs signal handlers in the main thread, which XLA may block for minutes, so `work`
        runs in a thread of its own. If this is not the main thread, no signal is recorded.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        handled = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, self._handle_signal) for each in handled}
        try:
            with ThreadPoolExecutor(1) as thread:
                future = thread.submit(work)
                # A signal that another thread receives does not interrupt a wait without a timeout.
                while not wait([future], timeout=0.2).done:
                    pass
                return future.result()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _handle_signal(self, number: int, _) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            _say("stopping after this chunk of steps")
        elif number == signal.SIGINT:  # SIGHUP and SIGTERM may be sent twice
            _say("stopped at once; the same command resumes from the last checkpoint")
            os._exit(128 + number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"\n{line}", file=sys.stderr, flush=True)
