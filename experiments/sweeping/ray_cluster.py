"""An existing Ray cluster: a task for each run, on whichever node has room for it.

The cluster's nodes need the code, its packages and the sweep's folder at the same path: a
shared file system or `gs://`. A run on a node that dies is begun again elsewhere, by Ray, and
goes on from its last checkpoint.
"""

import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from experiments.sweeping.backend import EpochReporter, Outcome, Say, Slot
from experiments.sweeping.plan import PlannedRun

# Times that Ray by itself begins a run again whose node died, or its process. After that the
# driver does, which counts what is not a node's loss.
_RESTARTS = 3
_SECONDS_BETWEEN_LOOKS = 2.0
# XLA takes this share of a GPU's memory at once, three quarters unless it is told otherwise.
_FRACTION, _OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
_USUAL_FRACTION = 0.75


class RayCluster:
    """The backend."""

    def __init__(self, out: str, flags: list[str], address: str = "auto"):
        """Prepares.

        Args:
          out: the sweep's folder; the nodes must see it.
          flags: of `bn_vgg.main`, besides the configuration and the workdir.
          address: of the cluster's head; `auto`: the one that this machine belongs to.

        Raises:
          UserError: Ray is not installed.
        """
        # A task's working directory is not this one.
        self._out = out if "://" in out else os.path.abspath(out)
        self._flags, self._address = flags, address
        self._ray = _import_ray()

    def commands(self, runs: list[PlannedRun]) -> list[str]:
        """The commands of the tasks."""
        return [shlex.join(["python", *run.arguments(self._out, *self._flags)]) for run in runs]

    def slots(self, runs: list[PlannedRun], say: Say) -> list[Slot]:
        """A slot for each run: Ray queues those that the nodes have no room for.

        Raises:
          UserError: there is no cluster, or none of its nodes could ever hold a run.
        """
        try:
            _reach(self._address)
            self._ray.init(
                self._address, ignore_reinit_error=True, log_to_driver=False,
                logging_level="warning",
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"--ray_address={self._address}: no Ray cluster there; start one with "
                "`ray start --head`, see README, 'Sweeps'"
            ) from error
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        for run in runs:
            _check_room(run, nodes)
        say(f"{len(runs)} runs to do on a Ray cluster of {len(nodes)} nodes")
        return [_Task(f"Ray task {i}", self._ray, self._out, self._flags, say)
                for i in range(len(runs))]  # fmt: skip

    def close(self) -> None:
        """See `Backend`. Ray prints what it has to tell of lost nodes until then, never after."""
        self._ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--backend=ray needs Ray: pip install -e '.[ray]'") from error
    return ray


def _reach(address: str) -> None:
    """Raises an OSError where nothing answers: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_room(run: PlannedRun, nodes: list[dict[str, Any]]) -> None:
    wanted = run.resources
    if any(all(node["Resources"].get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
        return
    most = {k: max((node["Resources"].get(k, 0) for node in nodes), default=0) for k in wanted}
    raise UserError(
        f"{run.folder} asks for {wanted} (config.resources), but no node has that: the most are "
        f"{most}; change it with --set=resources.CPU=1"
    )


class _Task:
    """A slot: waits for one task of the cluster at a time."""

    def __init__(self, name: str, ray: Any, out: str, flags: list[str], say: Say):
        self.name = name
        self._ray, self._out, self._flags, self._say = ray, out, flags, say
        self._going: Any = None
        self._stopped = False

    def execute(self, run: PlannedRun) -> Outcome:
        """See `Slot`."""
        ray = self._ray
        resources = dict(run.resources)
        cpus, gpus = resources.pop("CPU", 0), resources.pop("GPU", 0)
        # One call a process: JAX lets go of a device's memory at the process's end alone.
        task = ray.remote(
            max_calls=1, max_retries=_RESTARTS, num_cpus=cpus, num_gpus=gpus,
            resources=resources or None,
        )(make_run).options(name=run.folder)  # fmt: skip
        # The code is where it is here, as on every node.
        root = str(Path(__file__).resolve().parents[2])
        self._going = task.remote(root, gpus, run.arguments(self._out, *self._flags)[2:])
        if self._stopped:  # before there was a task to end
            self._cancel()
        epochs = EpochReporter(Workdir(run.workdir(self._out), writes=False), run, self._say)
        try:
            while not ray.wait([self._going], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                epochs.say_new()
            error = ray.get(self._going)
            epochs.say_new()
            return Outcome(error)
        except ray.exceptions.RayError as error:
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            return Outcome(said, lost=isinstance(error, ray.exceptions.NodeDiedError))
        except BaseException:
            self._cancel()  # nobody would wait for it any more
            raise
        finally:
            self._going = None

    def stop(self) -> None:
        """See `Slot`."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        going = self._going
        if going is not None:
            self._ray.cancel(going, force=True)

    def close(self) -> None:
        """See `Slot`."""


def take_share(gpus: float) -> None:
    """Has JAX take a GPU's memory by the share that Ray has given, unless it is told otherwise."""
    if 0 < gpus < 1 and not {_FRACTION, _OLD_FRACTION} & os.environ.keys():
        os.environ[_FRACTION] = f"{gpus * _USUAL_FRACTION:.3f}"


def make_run(root: str, gpus: float, arguments: list[str]) -> str | None:
    """The task: makes a run, or goes on with it, in a process of the cluster.

    Args:
      root: the checkout's folder.
      gpus: that Ray has given it; below 1, it takes that share of one's memory.
      arguments: of `bn_vgg.main`.

    Returns:
      What went wrong, in a line; None if the run is done.
    """
    os.chdir(root)
    if root not in sys.path:
        sys.path.insert(0, root)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    take_share(gpus)
    from bn_vgg.data.cache import choose_folder
    from experiments.sweeping.attempt import Attempts

    given = [a.partition("=")[2] for a in arguments if a.startswith("--cache_dir=")]
    return Attempts(choose_folder(*given[:1]), print).make(arguments)
