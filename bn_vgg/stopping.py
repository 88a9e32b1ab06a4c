"""Being asked to stop: Ctrl-C, the SIGTERM before a preemption, the SIGHUP of a lost terminal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from bn_vgg import multihost
from bn_vgg.errors import Interrupted


def raise_on_terminate() -> None:
    """Makes SIGTERM and SIGHUP raise `Interrupted` in the main thread, as Ctrl-C does its own.

    But not a SIGHUP that is ignored, as `nohup` has it.
    """

    def interrupt(number: int, _) -> None:
        raise Interrupted(signal.Signals(number), "terminated")

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether a run was asked to stop.

    Within `listening`, a first signal is only noted, so that the run can stop where it loses
    nothing. A second one does what it always does.
    """

    def __init__(self):
        self._signal: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Notes SIGINT, SIGTERM and SIGHUP; in the main thread alone, as Python has it.

        Of several processes Ctrl-C stops one alone and at once; JAX takes SIGTERM.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or multihost.has_peers():
            yield
            return
        before = {each: signal.getsignal(each) for each in _SIGNALS}
        before = {each: x for each, x in before.items() if x is not signal.SIG_IGN}

        def note(number: int, _) -> None:
            self._signal = signal.Signals(number)
            restore()

        def restore() -> None:
            for each, handler in before.items():
                signal.signal(each, handler)

        for each in before:
            signal.signal(each, note)
        try:
            yield
        finally:
            restore()

    def asked(self) -> signal.Signals | None:
        """The signal that came, if one did.

        With several processes all of them must call this equally often, and all learn of a
        SIGTERM to any of them in the same call.
        """
        return signal.SIGTERM if multihost.preempted() else self._signal
