"""Several processes that make one run: how they meet, agree, and end together.

With a single process every function here does nothing.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from etils import epath
from jax.experimental import multihost_utils

from bn_vgg import errors
from bn_vgg.errors import Interrupted, UserError, described, differences, first_line

# How long the processes wait for each other to be started.
_MEETING_SECONDS = 300
# JAX itself ends all processes when one has given no sign of life for so long.
_HEARTBEAT_SECONDS = 60
# How long a process may prepare its data, or wait for others that do; and then place them on the
# devices, read a checkpoint, compile and do an epoch.
_PREPARING_SECONDS, _STARTING_SECONDS = 4 * 3600, 1800
# A shared folder shows after a while what another host wrote: NFS, say, after half a minute.
_VISIBLE_SECONDS = 60
# What XLA calls it when a process in a collective, or in a barrier of Orbax's, is gone.
_LOST = re.compile("Gloo|NCCL|[Bb]arrier|coordination service|heartbeat")
_AGAIN = "run the same command again on all of them"


class _HangTimer:
    """Ends this process when nothing has happened in it for too long.

    A process whose peer hangs waits for it inside XLA, where no exception reaches it.
    """

    def __init__(self, timeout_seconds: int):
        self.timeout = timeout_seconds
        self.expect(max(timeout_seconds, _PREPARING_SECONDS))
        threading.Thread(target=self._watch, daemon=True).start()

    def expect(self, seconds: float) -> None:
        """Limits the time until the next call."""
        self._deadline, self._seconds = time.monotonic() + seconds, seconds

    def _watch(self) -> None:
        while time.monotonic() < self._deadline:
            time.sleep(0.5)
        _leave(
            f"nothing has happened for {self._seconds:g} seconds: this host or another hangs or is "
            f"gone; {_AGAIN}",
            errors.EXIT_HOST_LOST,
        )


# Of this process, as JAX's own state is.
_timer: _HangTimer | None = None
_exchanges, _calls = itertools.count(), itertools.count()


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 300,
) -> Iterator[None]:
    """Joins the processes of a run, where there are several, for the time of the context.

    By itself on a Cloud TPU pod and under Slurm, elsewhere by all three arguments, `coordinator`
    being `host:port` of the first process. Must be entered before JAX looks for devices. When one
    of several processes leaves by an exception it ends at once, and JAX ends the others. A chunk of
    steps may take `timeout_seconds`.

    Raises:
      UserError: some of the arguments are missing, or the processes did not meet.
    """
    global _timer
    _initialize(coordinator, num_processes, process_id)
    if not jax.distributed.is_initialized() or _state().num_processes == 1:
        yield
        return
    _timer = _HangTimer(timeout_seconds)
    try:
        yield
        _timer.expect(timeout_seconds)  # JAX waits for the others at the end
    except Interrupted as error:
        _leave(str(error), error.status)
    except KeyboardInterrupt:
        _leave(f"interrupted; {_AGAIN}", errors.EXIT_INTERRUPTED)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        # XLA's errors are of these two kinds.
        if isinstance(cause, ValueError | RuntimeError) and _LOST.search(str(cause)):
            _leave(f"another host is gone ({first_line(cause)}); {_AGAIN}", errors.EXIT_HOST_LOST)
        if isinstance(error, UserError):
            _leave(str(error), errors.EXIT_USER_ERROR)
        traceback.print_exc()
        _leave(described(error), errors.EXIT_BUG)


def _leave(message: str, status: int) -> NoReturn:
    """Ends this process. Python's own way out would wait for the others, as long as it takes."""
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    if _state().process_id == 0:
        time.sleep(3)  # JAX aborts the others as soon as the first process is gone
    os._exit(status)


def _state():
    # Nothing of JAX's that is public tells of the others before it looks for devices, nor carries
    # text among them without their devices, which wait less long than data may take.
    from jax._src.distributed import global_state

    return global_state


def has_peers() -> bool:
    """Whether this is one of several processes that make a run."""
    return _timer is not None


def starting() -> None:
    """Says that the data are there; limits the time until the first `epoch_done`."""
    if _timer is not None:
        _timer.expect(max(_timer.timeout, _STARTING_SECONDS))


def chunk_done() -> None:
    """Says that this process goes on; a later deadline, as while it compiles, stays."""
    if _timer is not None and time.monotonic() + _timer.timeout > _timer._deadline:
        _timer.expect(_timer.timeout)


def epoch_done() -> None:
    """Says that all is compiled: from now on `timeout_seconds` alone counts."""
    if _timer is not None:
        _timer.expect(_timer.timeout)


def preempted() -> bool:
    """Whether a process was asked to end, by SIGTERM: true in the same call in all of them.

    To be called equally often by each. JAX takes the signal from when the processes meet: a
    handler of Python's that is set afterwards would hide it.
    """
    # JAX chooses the number after the largest that any process has called with.
    return _timer is not None and multihost_utils.reached_preemption_sync_point(next(_calls))


def agree(facts: Mapping[str, Any]) -> None:
    """Returns when all processes have called it with the same facts, which JSON can hold.

    Raises:
      UserError: they differ; the message names the processes, the facts and their values.
    """
    if _timer is None:
        return
    state, folder = _state(), f"bn_vgg/facts/{next(_exchanges)}"
    mine = json.dumps({"host": socket.gethostname(), "facts": facts})
    state.client.key_value_set(f"{folder}/{state.process_id}", mine)
    found = [json.loads(_get(f"{folder}/{i}")) for i in range(state.num_processes)]
    names = [f"process {i} ({each['host']})" for i, each in enumerate(found)]
    differing = [
        f"{name} differs from {names[0]}: {why}"
        for name, each in zip(names, found, strict=True)
        if (why := differences(each["facts"], found[0]["facts"]))
    ]
    if differing:
        raise UserError("; ".join(differing))


def _get(key: str) -> str:
    while True:
        # A second at a time: Ctrl-C has no effect meanwhile.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return _state().client.blocking_key_value_get(key, 1000)
        time.sleep(0.1)


def check_shared(file: epath.Path) -> None:
    """Returns when each process sees a file that the first has written before it called this.

    Raises:
      UserError: a process does not see it; in all of them.
    """
    if _timer is None:
        return
    agree({})
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    try:
        agree({f"sees {file.name} in its --workdir": file.exists()})
    except UserError as error:
        raise UserError(f"{error}; name a --workdir that all hosts see") from error


def _initialize(coordinator, num_processes, process_id) -> None:
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator_address, --num_processes and --process_id go together")
        # gRPC would ask a proxy for the way to a machine of the same network.
        hosts = [os.environ.get("no_grpc_proxy"), coordinator.rpartition(":")[0]]  # noqa: SIM112
        os.environ["no_grpc_proxy"] = ",".join(filter(None, hosts))  # noqa: SIM112
    # Of the tasks that Slurm has started in this step; JAX would take the allocation's.
    elif (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) > 1:
        num_processes = tasks
    elif not _on_cloud_tpu():
        return
    # JAX gives each of Slurm's tasks one GPU of its node; a node's only task has all of them.
    alone_there = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    # XLA would say the same half a minute later, and abort.
    alone = (
        f"the processes did not meet in {_MEETING_SECONDS} seconds; start all of them, with the "
        "first one's --coordinator_address"
    )
    limit = threading.Timer(_MEETING_SECONDS, _leave, (alone, errors.EXIT_HOST_LOST))
    limit.daemon = True
    limit.start()
    # JAX waits where no handler of Python's runs: the system itself ends the process.
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, [] if alone_there else None,
            initialization_timeout=_MEETING_SECONDS + 30,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not meet: {error}") from error
    finally:
        limit.cancel()
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if not jax.distributed.is_initialized():  # otherwise JAX has taken it, see `preempted`
            signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, single or of a pod; JAX then asks it for its peers."""
    if os.environ.get("TPU_VISIBLE_CHIPS"):  # of a sweep that gives each chip a run of its own
        return False
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None
