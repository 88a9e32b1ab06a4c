"""Data parallelism: plain `jit` on one device, `pmap` on several."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bn_vgg.errors import UserError
from bn_vgg.models.convolution import cpu_compiler_options

AXIS = "batch"


class Devices:
    """All devices of all hosts; they share each batch equally.

    Attributes:
      count: number of devices over all hosts.
      local_count: number of devices of this host.
      axis_name: the mapped axis for collectives in per-device code; None with one device.
    """

    def __init__(self):
        self.count, self.local_count = jax.device_count(), jax.local_device_count()
        self.axis_name = AXIS if self.count > 1 else None
        mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
        self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def compile(self, function: Callable) -> Callable:
        """Compiles per-device code; with several devices each argument has a leading device axis.

        No argument is donated, so that a chunk can be repeated if one of its steps is not finite.
        """
        if self.axis_name is None:
            options = cpu_compiler_options() if jax.default_backend() == "cpu" else None
            return jax.jit(function, compiler_options=options)
        return jax.pmap(function, axis_name=self.axis_name)

    def replicate(self, tree):
        """Puts a copy of each array on every local device."""
        if self.axis_name is None:
            return jax.device_put(tree, jax.local_devices()[0])
        return jax.tree.map(self._replicate, tree)

    def _replicate(self, array):
        # One by one, because a stack of all copies may be too large for the host's memory.
        copies = [jax.device_put(array[None], device) for device in jax.local_devices()]
        shape = (self.local_count, *array.shape)
        return jax.make_array_from_single_device_arrays(shape, self._sharding, copies)

    def fetch(self, replicated):
        """Copies one replica to the host, as NumPy arrays."""
        if self.axis_name is None:
            return jax.device_get(replicated)
        # Indexed on the host: an operation on the device would wait for the queued chunk.
        shards = jax.tree.map(lambda x: x.addressable_shards[0].data, replicated)
        return jax.tree.map(lambda x: x[0], jax.device_get(shards))

    def first(self, replicated):
        """Returns the replica on the first local device."""
        if self.axis_name is None:
            return replicated
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], replicated)

    def shard(self, batches: dict[str, np.ndarray]) -> dict[str, Any]:
        """Splits this host's rows of stacked batches, (S, N, ...), axis 1, over its devices."""
        if self.axis_name is None:
            return jax.device_put(batches, jax.local_devices()[0])

        def split(array):
            steps, rows = array.shape[:2]
            share = rows // self.local_count
            shares = array.reshape(steps, self.local_count, share, *array.shape[2:])
            return jax.device_put(shares.swapaxes(0, 1), self._sharding)

        return {key: split(array) for key, array in batches.items()}

    def host_rows(self, batch_size: int) -> slice:
        """Returns the rows of each global batch that belong to this host."""
        rows = batch_size // self.count * self.local_count
        return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def check(self, batch_size: int, precision: str) -> None:
        """Checks that the devices suit a configuration.

        Raises:
          UserError: they cannot share a batch equally, or have no TensorFloat-32.
        """
        if batch_size % self.count:
            raise UserError(
                f"config.batch_size: {self.count} devices cannot share {batch_size} examples "
                f"equally; set a multiple of {self.count}, or let JAX see fewer devices"
            )
        backend = jax.default_backend()
        if precision == "tensorfloat32" and backend != "gpu":
            raise UserError(
                f"config.model.precision: tensorfloat32 is for NVIDIA GPUs, and this is a "
                f"{backend.upper()}; set it to highest"
            )
