"""Joining the processes of a run on several hosts."""

import importlib.util
import os
from pathlib import Path

import jax

from bn_vgg.errors import UserError


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Starts `jax.distributed` where there are several processes.

    By itself on a Cloud TPU pod and under Slurm, elsewhere by all three arguments. Must
    run before JAX looks for devices.

    Raises:
      UserError: some of the arguments are missing, or the processes did not meet.
    """
    given = (coordinator, num_processes, process_id)
    try:
        if any(value is not None for value in given):
            if any(value is None for value in given):
                raise UserError(
                    "--coordinator_address, --num_processes and --process_id go together"
                )
            jax.distributed.initialize(coordinator, num_processes, process_id)
        elif _on_cloud_tpu() or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not meet: {error}") from error


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, single or of a pod; JAX then asks it for its peers."""
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None
