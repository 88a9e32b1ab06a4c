"""The executor for an existing Ray cluster: a task for each run, on any node with room for it.

All nodes need the code, its packages and the sweep's folder at the same path, which is on a shared
file system or `gs://`. If a node dies, Ray starts its runs on other nodes, where they resume from
their last checkpoints.
"""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bn_vgg.errors import UserError, wrap_import_errors
from experiments.executors import Executor, Outcome, Work
from experiments.executors.local import Process


class Ray(Executor):
    """See `Executor`."""

    poll_seconds = 2.0

    def __init__(self, out: str, flags: Sequence[str], address: str = "auto"):
        """Raises a UserError if Ray is not installed. All nodes must have access to `out`."""
        with wrap_import_errors("ray"):
            import ray
        super().__init__(out if "://" in out else os.path.abspath(out), flags)
        self._address, self._ray = address, ray

    def open(self, work: Sequence[Work]) -> list[str]:
        """Returns a slot for each run, because Ray queues runs until there is room.

        Raises a UserError if there is no cluster, or its resources are not what runs ask for.
        """
        host, colon, port = self._address.removeprefix("ray://").rpartition(":")
        try:
            if colon and port.isdecimal():  # Ray itself would wait for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            self._ray.init(
                self._address, ignore_reinit_error=True, log_to_driver=False,
                logging_level="warning",
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"--ray_address={self._address}: no Ray cluster there; start one with "
                "`ray start --head`, see experiments/README.md"
            ) from error
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for run in (each.runs[0] for each in work):  # Ray would wait forever
            if not any(all(n.get(k, 0) >= x for k, x in run.resources.items()) for n in nodes):
                raise UserError(
                    f"{run.folder} asks for {run.resources} (config.resources), but no node has "
                    "that; change it with --set=resources.CPU=1"
                )
        asked = {kind for each in work for kind, x in each.runs[0].resources.items() if x}
        there = {kind for node in nodes for kind in ("GPU", "TPU") if node.get(kind)}
        if there and not there & asked and "JAX_PLATFORMS" not in os.environ:
            raise UserError(
                f"nodes have {' and '.join(sorted(there))}s, but no run asks for one: add "
                "--set=resources.GPU=1 (or TPU), or set JAX_PLATFORMS=cpu"
            )
        return [f"a Ray cluster of {len(nodes)} nodes"] * len(work)

    def start(self, work: Work, slot: int) -> Any:
        resources = dict(work.runs[0].resources)
        cpus, gpus = resources.pop("CPU", 0), resources.pop("GPU", 0)
        folder = "/tmp/bn_vgg" if "://" in self._out else self._out
        passed_on = ("PYTHONPATH", "JAX_PLATFORMS", "BN_VGG_CACHE", "WANDB_")
        environment = {x: value for x, value in os.environ.items() if x.startswith(passed_on)}
        if 0 < gpus < 1:  # the first run on a shared GPU would take three quarters of its memory
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        task = self._ray.remote(
            max_retries=3,  # after a node died
            num_cpus=cpus, num_gpus=gpus, resources=resources or None,
        )(_execute).options(name=work.name)  # fmt: skip
        return task.remote(work.arguments, f"{folder}/{work.name}.out", environment)

    def poll(self, process: Any) -> Outcome | None:
        if not self._ray.wait([process], timeout=0)[0]:
            return None
        errors = self._ray.exceptions
        try:
            return self._ray.get(process)
        except errors.RayError as error:
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            return Outcome(1, said, lost=isinstance(error, errors.NodeDiedError))

    def stop(self, process: Any) -> None:
        self._ray.cancel(process)


def _execute(arguments: Sequence[str], output: str, environment: dict[str, str]) -> Outcome:
    """The Ray task: trains a run in another process."""
    os.chdir(Path(__file__).resolve().parents[2])
    process = Process(arguments, Path(output), environment)
    try:
        while (ended := process.poll()) is None:
            time.sleep(0.5)
        return ended
    except KeyboardInterrupt:  # raised when the task is cancelled
        process.popen.terminate()
        process.popen.wait(Ray.stop_seconds)
        raise
