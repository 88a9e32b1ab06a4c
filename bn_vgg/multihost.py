"""Several processes that make one run: how they meet, agree, and end together.

With a single process every function here does nothing.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import reprlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from etils import epath
from jax.experimental import multihost_utils

from bn_vgg.errors import (
    EXIT_BUG,
    EXIT_HOST_LOST,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    Interrupted,
    UserError,
    first_line,
)
from bn_vgg.watchdog import Watchdog

# How long the processes wait for each other to be started.
_MEETING_SECONDS = 300
# How long a process may prepare its data, or wait for others that do; and then start: place the
# data on the devices, read a checkpoint, compile, do an epoch.
_PREPARING_SECONDS, _STARTING_SECONDS = 4 * 3600, 1800
# A shared folder shows what another host wrote after a while; NFS, say, after half a minute.
_VISIBLE_SECONDS = 60
# What XLA calls it when a process in a collective, or in a barrier of Orbax's, is gone.
_LOST = re.compile("Gloo|NCCL|[Bb]arrier|coordination service")

# Of this process, as JAX's own state is.
_watchdog: Watchdog | None = None
_timeout_seconds = 0
_exchanges, _calls = itertools.count(), itertools.count()


class DisagreementError(UserError):
    """Every process raises it with the same message."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 300,
) -> Iterator[None]:
    """Joins the processes of a run, where there are several, for the time of the context.

    By itself on a Cloud TPU pod and under Slurm, elsewhere by all three arguments. Must be
    entered before JAX looks for devices. When one of several processes leaves by an
    exception, all of them end, and none returns from here.

    Args:
      coordinator: `host:port` of the first process.
      num_processes: over all hosts.
      process_id: this process's number, from 0.
      timeout_seconds: within which a process has to get on, see `step_done`. XLA itself
        ends all when one does not answer for half a minute longer.

    Raises:
      UserError: some of the arguments are missing, or the processes did not meet.
    """
    global _watchdog, _timeout_seconds
    _initialize(coordinator, num_processes, process_id, timeout_seconds + 30)
    # Nothing of JAX's that is public tells of the others before it looks for devices, nor
    # carries text among them without their devices, which wait less long than data may take.
    from jax._src.distributed import global_state

    if not jax.distributed.is_initialized() or global_state.num_processes == 1:
        yield
        return
    index, count = global_state.process_id, global_state.num_processes
    watchdog = Watchdog(
        global_state.client, index, count, name=_name(index, socket.gethostname()),
        seconds=max(timeout_seconds, _PREPARING_SECONDS),
    )  # fmt: skip
    _watchdog, _timeout_seconds = watchdog, timeout_seconds
    try:
        yield
    except Interrupted as error:  # all of them were asked to stop
        watchdog.leave(str(error), error.status, tell=False)
    except KeyboardInterrupt:
        watchdog.leave("interrupted; run the same command again", EXIT_INTERRUPTED)
    except Exception as error:
        _leave(watchdog, error)
    finally:
        _watchdog = None
        watchdog.stop()


def has_peers() -> bool:
    """Whether this is one of several processes that make a run."""
    return _watchdog is not None


def start() -> None:
    """Says that the data are there; limits the time until the first `epoch_done`."""
    if _watchdog is not None:
        _watchdog.beat(max(_timeout_seconds, _STARTING_SECONDS))


def step_done() -> None:
    """Says that this process goes on; `joined`'s time passes from now, or `start`'s is left."""
    if _watchdog is not None:
        _watchdog.extend(_timeout_seconds)


def epoch_done() -> None:
    """Says that all is compiled, and limits the time until the next call of one of these."""
    if _watchdog is not None:
        _watchdog.beat(_timeout_seconds)


def preempted() -> bool:
    """Whether a process was asked to end, by SIGTERM: true in the same call in all of them.

    To be called equally often by each. JAX takes the signal, from when
    the processes meet: a handler of Python's that is set afterwards would hide it from here,
    and without these calls it has no effect at all.
    """
    if _watchdog is None:
        return False
    # JAX chooses the number after the largest that any process has called with.
    return multihost_utils.reached_preemption_sync_point(next(_calls))


def agree(facts: Mapping[str, Any]) -> None:
    """Returns when all processes have called it with the same facts.

    Args:
      facts: by name, each something that JSON can hold.

    Raises:
      UserError: they differ; the message names the processes, the facts and their values.
    """
    if _watchdog is None:
        return
    folder = f"bn_vgg/facts/{next(_exchanges)}"
    mine = json.dumps({"host": socket.gethostname(), "facts": facts})
    _watchdog.put(f"{folder}/{_watchdog.index}", mine)
    all_of_them = [json.loads(_watchdog.get(f"{folder}/{i}")) for i in range(_watchdog.count)]
    differing = differences(
        [_name(i, its["host"]) for i, its in enumerate(all_of_them)],
        [its["facts"] for its in all_of_them],
    )
    if differing:
        raise DisagreementError(differing)


def check_shared(file: epath.Path) -> None:
    """Returns when each process sees a file that the first has written before it called this.

    Raises:
      UserError: a process does not see it.
    """
    if _watchdog is None:
        return
    agree({})
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{file}, which the first process wrote, is not there; name a --workdir that "
                "all hosts see"
            )
        time.sleep(0.5)


def differences(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> str:
    """Says in one line where processes differ from the first; empty if they do not.

    Args:
      names: of the processes.
      facts: of each.
    """
    first, missing = facts[0], "(not there)"
    found = []
    for name, its in zip(names[1:], facts[1:], strict=True):
        fields = [
            f"{field} is {_short(its.get(field, missing))}, not {_short(first.get(field, missing))}"
            for field in sorted(first.keys() | its.keys())
            if its.get(field, missing) != first.get(field, missing)
        ]
        if fields:
            found.append(f"{name} differs from {names[0]}: {'; '.join(fields)}")
    return "; ".join(found)


def _initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds: int) -> None:
    given = (coordinator, num_processes, process_id)
    # XLA would say the same half a minute later, and abort.
    limit = threading.Timer(_MEETING_SECONDS, _say_that_they_did_not_meet)
    limit.daemon = True
    limit.start()
    limits: dict[str, Any] = {
        "initialization_timeout": _MEETING_SECONDS + 30,
        "heartbeat_timeout_seconds": heartbeat_timeout_seconds,
    }
    try:
        if any(value is not None for value in given):
            if any(value is None for value in given):
                raise UserError(
                    "--coordinator_address, --num_processes and --process_id go together"
                )
            jax.distributed.initialize(*given, **limits)
        elif _on_cloud_tpu() or _by_srun():
            jax.distributed.initialize(**limits)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not meet: {error}") from error
    finally:
        limit.cancel()


def _say_that_they_did_not_meet() -> NoReturn:
    print(
        f"error: the processes did not meet in {_MEETING_SECONDS} seconds; start all of them, with "
        "the same --coordinator_address, which has to be the first one's",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_HOST_LOST)


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, single or of a pod; JAX then asks it for its peers."""
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _by_srun() -> bool:
    """Whether Slurm has started several of these, and not one script that starts this process."""
    in_a_step = "SLURM_STEP_NODELIST" in os.environ
    return in_a_step and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _leave(watchdog: Watchdog, error: Exception) -> NoReturn:
    cause = error.__cause__ if isinstance(error, UserError) else error
    # XLA's errors are of these two kinds.
    if isinstance(cause, ValueError | RuntimeError) and _LOST.search(str(cause)):
        # The lost one may have said why, which the watchdog hears and then ends this process.
        time.sleep(3)
        watchdog.leave(
            f"another host is gone ({first_line(cause)}); run the same command again on all of "
            "them",
            EXIT_HOST_LOST,
        )
    if isinstance(error, UserError):
        tell = not isinstance(error, DisagreementError)
        watchdog.leave(str(error), EXIT_USER_ERROR, tell=tell)
    traceback.print_exc()
    watchdog.leave(f"{type(error).__name__}: {first_line(error)}", EXIT_BUG)


def _name(index: int, host: str) -> str:
    return f"process {index} ({host})"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else reprlib.repr(value)
