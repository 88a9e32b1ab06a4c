"""Being asked to stop: Ctrl-C, the SIGTERM before a preemption, the SIGHUP of a lost terminal."""

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
    """Makes SIGTERM and SIGHUP raise `Interrupted`, but not a SIGHUP that `nohup` ignores."""

    def interrupt(number: int, _) -> None:
        raise Interrupted(signal.Signals(number), "terminated")

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


@contextlib.contextmanager
def obeyed_already() -> Iterator[None]:
    """Ignores SIGTERM and SIGHUP meanwhile, in the main thread: what they ask for is under way."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {each: signal.signal(each, signal.SIG_IGN) for each in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class StopRequest:
    """The `signal` that has asked a run to stop, or None."""

    def __init__(self):
        self.signal: signal.Signals | None = None

    def during(self, work: Callable[[], Any]) -> Any:
        """Returns what `work` does; notes the first signal meanwhile, a later Ctrl-C ends at once.

        Python runs handlers in the main thread, and XLA may keep a thread for minutes: so `work`
        has a thread of its own. Outside the main thread, where signals cannot be set, none is
        noted.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        handled = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, self._note) for each in handled}
        try:
            with ThreadPoolExecutor(1) as thread:
                future = thread.submit(work)
                # The system may give a signal to another thread, which does not wake this one.
                while not wait([future], timeout=0.2).done:
                    pass
                return future.result()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _note(self, number: int, _) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            _say("stopping after this chunk of steps")
        elif number == signal.SIGINT:  # a lost terminal and a shutdown may send theirs twice
            _say("ended at once; the same command goes on from what is kept")
            os._exit(128 + number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what was lost
        print(f"\n{line}", file=sys.stderr, flush=True)
