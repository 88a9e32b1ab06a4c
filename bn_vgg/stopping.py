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
    """Makes SIGTERM and SIGHUP raise `Interrupted` in the main thread, as Ctrl-C does its own.

    But not a SIGHUP that is ignored, as `nohup` has it.
    """

    def interrupt(number: int, _) -> None:
        raise Interrupted(signal.Signals(number), "terminated")

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


class StopRequest:
    """Whether a signal has asked the run to stop.

    Attributes:
      signal: that came, if one did.
    """

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
        before = {each: signal.getsignal(each) for each in handled}
        read, write = os.pipe()
        os.set_blocking(write, False)
        thread = threading.Thread(target=self._listen, args=(read,), daemon=True)
        thread.start()
        for each in handled:  # the byte in the pipe is what counts
            signal.signal(each, lambda number, frame: None)
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
            ends = self.signal is not None
            self.signal = asked
            line = "stopping after this chunk of steps"
            if ends:
                line = "ended at once; the same command goes on from what is kept"
            with contextlib.suppress(OSError):  # the terminal may be what was lost
                print(f"\n{line}", file=sys.stderr, flush=True)
            if ends:
                os._exit(128 + asked)
