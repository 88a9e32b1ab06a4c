"""Being asked to stop: Ctrl-C, the SIGTERM before a preemption, the SIGHUP of a lost terminal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from bn_vgg.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def raise_on_terminate() -> None:
    """Makes SIGTERM and SIGHUP raise `Interrupted`, but not a SIGHUP that `nohup` ignores."""

    def interrupt(number: int, _) -> None:
        raise Interrupted(signal.Signals(number), "terminated")

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


class StopRequest:
    """The `signal` that has asked a run to stop, or None."""

    def __init__(self):
        self.signal: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Notes the first signal and says so; a second one ends the process at once.

        A thread listens: the main one may be inside XLA for minutes, where no handler of Python's
        runs. Outside the main thread, where signals cannot be set, nothing is done.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        read, write = os.pipe()
        os.set_blocking(write, False)
        thread = threading.Thread(target=self._listen, args=(read,), daemon=True)
        thread.start()
        # The byte that Python writes into the pipe is what counts.
        before = {each: signal.signal(each, lambda number, frame: None) for each in handled}
        wakeup = signal.set_wakeup_fd(write)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for each, handler in before.items():
                signal.signal(each, handler)
            os.close(write)
            thread.join()
            os.close(read)

    def _listen(self, read: int) -> None:
        while number := os.read(read, 1):
            asked = signal.Signals(number[0])
            if asked not in _SIGNALS:
                continue
            if self.signal is None:
                self.signal = asked
                _say("stopping after this chunk of steps")
            else:
                _say("ended at once; the same command goes on from what is kept")
                os._exit(128 + asked)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what was lost
        print(f"\n{line}", file=sys.stderr, flush=True)
