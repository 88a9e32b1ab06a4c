"""When one of several processes hangs, dies or ends in an error, all of them end.

A process whose peer is lost waits for it inside XLA, where no exception and no signal handler of
Python reaches it. So threads watch, and end the process without asking it.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from absl import logging

from bn_vgg.errors import EXIT_HOST_LOST, EXIT_USER_ERROR

# Where the processes leave word, in the key-value store that the first of them keeps.
_ENDED = "bn_vgg/ended"
_LEFT = "bn_vgg/left"
_ALIVE = "bn_vgg/alive"
_DONE = "done"
# What a process that leaves takes for telling so, at most.
_FAREWELL_SECONDS = 10
_POLL_MS = 1000
# Signs of life are given and looked for in one poll of so many; a process that gives none
# for so many looks is gone. Looks, not seconds: a store that answers late delays both.
_POLLS_PER_LOOK = 5
_SILENT_LOOKS = 12


class Watchdog:
    """Ends this process when nothing happens in it any more, or when another has ended.

    Attributes:
      index: this process's number.
      count: of processes.
      name: this process, for a person.
    """

    def __init__(self, client: Any, index: int, count: int, *, name: str, seconds: float):
        """Begins to watch.

        Args:
          client: of JAX's key-value store.
          index: this process's number.
          count: of processes.
          name: this process, for a person.
          seconds: until the first beat, at most.
        """
        self.index, self.count, self.name = index, count, name
        self._client = client
        self._heard: dict[int, tuple[str, int]] = dict.fromkeys(range(count), ("", 0))
        self.beat(seconds)
        self._stopped, self._leaving = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._watch, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def beat(self, seconds: float) -> None:
        """Says that this process goes on, and does so again in `seconds` at the latest."""
        self._until = time.monotonic() + seconds, seconds

    def extend(self, seconds: float) -> None:
        """Moves the deadline to `seconds` from now, unless it is later already."""
        if time.monotonic() + seconds > self._until[0]:
            self.beat(seconds)

    def put(self, key: str, value: str) -> None:
        """Shows the others a value."""
        self._client.key_value_set(key, value)

    def get(self, key: str) -> str:
        """Waits for a value that another process puts."""
        while True:
            # A second at a time: Ctrl-C has no effect meanwhile.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                return self._client.blocking_key_value_get(key, _POLL_MS)
            time.sleep(0.1)

    def stop(self) -> None:
        """Watches no longer. A thread still inside JAX would abort Python's exit."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_ALIVE}/{self.index}", _DONE, allow_overwrite=True)

    def leave(self, message: str, status: int, *, tell: bool = True) -> NoReturn:
        """Ends this process at once, whatever its other threads do.

        Python's own way out would wait for the lost process, as long as it takes.

        Args:
          message: becomes `error: …` on standard error.
          status: to exit with.
          tell: whether the other processes have to be told, which then end as well.
        """
        self._leaving.acquire()  # for ever: of two threads that leave, the first has the word
        # Each of these can hang: a pipe that is full, a disk or a first process that is gone.
        farewell = threading.Thread(
            target=self._bid_farewell, args=(message, status, tell), daemon=True
        )
        farewell.start()
        farewell.join(_FAREWELL_SECONDS)
        os._exit(status)

    def _bid_farewell(self, message: str, status: int, tell: bool) -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if tell:
                # Someone else may have been quicker, which raises and is as good.
                word = {"message": f"{self.name}: {message}", "status": status}
                self._client.key_value_set(_ENDED, json.dumps(word))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_LEFT}/{self.index}", "")
            if self.index == 0:
                # The store ends with this process, and XLA then aborts the others.
                for other in range(1, self.count):
                    self._client.blocking_key_value_get(
                        f"{_LEFT}/{other}", _FAREWELL_SECONDS * 1000
                    )
                time.sleep(0.5)
        logging.info("error: %s", message)

    def _watch(self) -> None:
        while not self._stopped.wait(1):
            deadline, seconds = self._until
            if time.monotonic() > deadline:
                self.leave(
                    f"nothing has happened for {seconds:g} seconds: this host or another hangs "
                    "or is gone; run the same command again on all of them",
                    EXIT_HOST_LOST,
                )

    def _listen(self) -> None:
        for poll in itertools.count():
            if self._stopped.is_set():
                return
            try:
                if poll % _POLLS_PER_LOOK == 0:
                    self._look_for_life(poll // _POLLS_PER_LOOK)
                word = json.loads(self._client.blocking_key_value_get(_ENDED, _POLL_MS))
            except jax.errors.JaxRuntimeError as error:
                if "UNAVAILABLE" in str(error) and self._leaving.acquire(blocking=False):
                    # XLA aborts in a moment, with pages of its own: there is no time to log.
                    print("error: the first process is gone", file=sys.stderr, flush=True)
                    os._exit(EXIT_HOST_LOST)
                self._stopped.wait(0.1)
                continue
            by_user = word["status"] == EXIT_USER_ERROR
            self.leave(word["message"], EXIT_USER_ERROR if by_user else EXIT_HOST_LOST, tell=False)

    def _look_for_life(self, look: int) -> None:
        """Gives this process's sign of life, and ends it when another gives none any more.

        XLA notices a lost process only where it holds a connection to it, not in a barrier.
        """
        self._client.key_value_set(f"{_ALIVE}/{self.index}", str(look), allow_overwrite=True)
        for key, sign in self._client.key_value_dir_get(_ALIVE):
            index = int(key.rpartition("/")[2])
            if sign == _DONE or sign != self._heard[index][0]:
                self._heard[index] = sign, look
        for index, (_, heard) in self._heard.items():
            if look - heard > _SILENT_LOOKS:
                self.leave(
                    f"another host is gone (process {index} gives no sign of life); run the same "
                    "command again on all of them",
                    EXIT_HOST_LOST,
                )
