"""Runs of several processes: they connect, check that they agree, and exit together.

With a single process these functions return at once, and the predicates return False.
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
from bn_vgg.errors import Interrupted, UserError, describe_differences, describe_error, first_line

# How long the processes wait for each other to start.
_CONNECT_SECONDS = 300
# JAX ends all processes when one sends no heartbeat for this long.
_HEARTBEAT_SECONDS = 60
# Limits for preparing data, or waiting for hosts that do; and for the start up to the end of the
# first epoch: placing data, reading a checkpoint, compiling.
_PREPARING_SECONDS, _STARTING_SECONDS = 4 * 3600, 1800
# A shared folder, such as NFS, may show a new file half a minute late.
_VISIBLE_SECONDS = 60
# Words in XLA's and Orbax's errors when another process of a collective or barrier is gone.
_LOST = re.compile("Gloo|NCCL|[Bb]arrier|coordination service|heartbeat")
_AGAIN = "run the same command again on all of them"


class _Watchdog:
    """Ends this process when it makes no progress for too long.

    If another process hangs, this one waits inside XLA, where no exception can be raised.
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
        _exit(
            f"nothing has happened for {self._seconds:g} seconds: this host or another hangs or is "
            f"gone; {_AGAIN}",
            errors.EXIT_HOST_LOST,
        )


# Global, as is the state of jax.distributed.
_timer: _Watchdog | None = None
_agreement_ids, _preemption_ids = itertools.count(), itertools.count()


@contextlib.contextmanager
def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 300,
) -> Iterator[None]:
    """Connects the processes of a run, if there are several, within the context.

    On Cloud TPU pods and under Slurm they find each other; elsewhere all three arguments are
    needed, where `coordinator` is `host:port` of the first process. Enter it before JAX initializes
    its backend. A process that raises an exception ends at once, and JAX ends the others. A chunk
    of steps may take `timeout_seconds`.

    Raises:
      UserError: some of the arguments are missing, or the processes did not connect.
    """
    global _timer
    _initialize(coordinator, num_processes, process_id)
    if not jax.distributed.is_initialized() or _state().num_processes == 1:
        yield
        return
    _timer = _Watchdog(timeout_seconds)
    try:
        yield
        _timer.expect(timeout_seconds)  # at its exit JAX waits for the others
    except Interrupted as error:
        _exit(str(error), error.status)
    except KeyboardInterrupt:
        _exit(f"interrupted; {_AGAIN}", errors.EXIT_INTERRUPTED)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        # XLA raises these two types.
        if isinstance(cause, ValueError | RuntimeError) and _LOST.search(str(cause)):
            _exit(f"another host is gone ({first_line(cause)}); {_AGAIN}", errors.EXIT_HOST_LOST)
        if isinstance(error, UserError):
            _exit(str(error), error.status)
        traceback.print_exc()
        _exit(describe_error(error), errors.EXIT_BUG)


def _exit(message: str, status: int) -> NoReturn:
    """Ends this process at once. A normal exit would wait for the other processes."""
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    if _state().process_id == 0:
        time.sleep(3)  # JAX aborts the others when the first process is gone: let them report
    os._exit(status)


def _state():
    # JAX has no public way to count processes before it initializes its backend, nor to exchange
    # text without collectives, whose timeout is shorter than preparing data may take.
    from jax._src.distributed import global_state

    return global_state


def is_multiprocess() -> bool:
    """Whether the run has several processes."""
    return _timer is not None


def expect_compilation() -> None:
    """Allows `_STARTING_SECONDS` until the next `epoch_done`, for compilation."""
    if _timer is not None:
        _timer.expect(max(_timer.timeout, _STARTING_SECONDS))


def chunk_done() -> None:
    """Restarts the timeout of a chunk; a later deadline, as for compilation, stays."""
    if _timer is not None and time.monotonic() + _timer.timeout > _timer._deadline:
        _timer.expect(_timer.timeout)


def epoch_done() -> None:
    """Ends the time for compilation: from now on each chunk may take `timeout_seconds`."""
    if _timer is not None:
        _timer.expect(_timer.timeout)


def preempted() -> bool:
    """Whether SIGTERM was sent to a process: True in all processes at the same call.

    Each process must call this equally often. JAX handles SIGTERM once the processes are connected;
    a Python handler that is set afterwards would replace JAX's.
    """
    # JAX chooses the call after the latest one that any process has made.
    return _timer is not None and multihost_utils.reached_preemption_sync_point(
        next(_preemption_ids)
    )


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Waits until all processes have called this, and checks that their `facts` are the same.

    Facts are JSON values by name.

    Raises:
      UserError: they differ; the message names the processes, the facts and their values.
    """
    if _timer is None:
        return
    state, folder = _state(), f"bn_vgg/facts/{next(_agreement_ids)}"
    mine = json.dumps({"host": socket.gethostname(), "facts": facts})
    state.client.key_value_set(f"{folder}/{state.process_id}", mine)
    found = [json.loads(_get(f"{folder}/{i}")) for i in range(state.num_processes)]
    names = [f"process {i} ({each['host']})" for i, each in enumerate(found)]
    differing = [
        f"{name} differs from {names[0]}: {why}"
        for name, each in zip(names, found, strict=True)
        if (why := describe_differences(each["facts"], found[0]["facts"]))
    ]
    if differing:
        raise UserError("; ".join(differing))


def _get(key: str) -> str:
    while True:
        # One second at a time, because Ctrl-C has no effect meanwhile.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return _state().client.blocking_key_value_get(key, 1000)
        time.sleep(0.1)


def check_shared(file: epath.Path) -> None:
    """Checks that each process sees a file that the first one has written before this call.

    Raises:
      UserError: some process does not see it. All processes raise it.
    """
    if _timer is None:
        return
    check_agreement({})
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    try:
        check_agreement({f"sees {file.name} in its --workdir": file.exists()})
    except UserError as error:
        raise UserError(f"{error}; name a --workdir that all hosts see") from error


def _initialize(coordinator, num_processes, process_id) -> None:
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator_address, --num_processes and --process_id go together")
        # gRPC would send traffic within the network through an HTTP proxy.
        hosts = [os.environ.get("no_grpc_proxy"), coordinator.rpartition(":")[0]]  # noqa: SIM112
        os.environ["no_grpc_proxy"] = ",".join(filter(None, hosts))  # noqa: SIM112
    # The tasks of this Slurm step; JAX would count those of the whole allocation.
    elif (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) > 1:
        num_processes = tasks
    elif not _on_cloud_tpu():
        return
    # Under Slurm JAX uses one GPU for each task; the only task of a node may use all of them.
    only_task_on_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    # XLA would abort half a minute later, with a page of text.
    timeout_message = (
        f"the processes did not connect within {_CONNECT_SECONDS} seconds; start all of them, with "
        "the first one's --coordinator_address"
    )
    limit = threading.Timer(_CONNECT_SECONDS, _exit, (timeout_message, errors.EXIT_HOST_LOST))
    limit.daemon = True
    limit.start()
    # While JAX waits, Python handlers do not run, so the default ones must end the process.
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, [] if only_task_on_node else None,
            initialization_timeout=_CONNECT_SECONDS + 30,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not connect: {error}") from error
    finally:
        limit.cancel()
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if not jax.distributed.is_initialized():  # otherwise JAX has taken it, see `preempted`
            signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, single or of a pod, where JAX finds the other processes."""
    if os.environ.get("TPU_VISIBLE_CHIPS"):  # a sweep gives each chip a run of its own
        return False
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None
