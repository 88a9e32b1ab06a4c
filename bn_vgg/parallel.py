"""One device or several, one host or several: how a step is compiled and fed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bn_vgg.errors import UserError
from bn_vgg.models.convolution import cpu_compiler_options

AXIS = "batch"


class Devices:
    """The devices that share each batch: plain `jit` for one, `pmap` for several.

    Attributes:
      count: devices over all hosts.
      local: devices of this host.
      axis_name: what per-device code passes to collectives; None with one device.
      copy: copies a tree of arrays on the devices, so that the originals may be donated.
    """

    def __init__(self):
        self.count = jax.device_count()
        self.local = jax.local_device_count()
        self.axis_name = AXIS if self.count > 1 else None
        mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
        self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))
        self.copy = self.compile(_copy)

    def compile(self, step: Callable, *, donated: tuple[int, ...] = ()) -> Callable:
        """Compiles per-device code; mapped arguments have the devices as leading axis."""
        if self.axis_name is None:
            options = cpu_compiler_options() if jax.default_backend() == "cpu" else None
            return jax.jit(step, donate_argnums=donated, compiler_options=options)
        return jax.pmap(step, axis_name=self.axis_name, donate_argnums=donated)

    def replicate(self, tree):
        """Puts a copy of each array on every local device."""
        if self.axis_name is None:
            return jax.device_put(tree, jax.local_devices()[0])
        return jax.tree.map(self._replicate, tree)

    def _replicate(self, array):
        # One by one: a stack of all copies may be too large for the host.
        copies = [jax.device_put(array[None], device) for device in jax.local_devices()]
        shape = (self.local, *array.shape)
        return jax.make_array_from_single_device_arrays(shape, self._sharding, copies)

    def fetch(self, replicated):
        """Copies one of the equal replicas to host memory, as NumPy arrays."""
        return jax.device_get(self.first(replicated))

    def first(self, replicated):
        """Returns the replica on the first local device."""
        if self.axis_name is None:
            return replicated
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], replicated)

    def shard(self, batches: dict[str, np.ndarray]) -> dict[str, Any]:
        """Shares out this host's part of stacked batches (S, N, ...), axis 1, over its devices."""
        if self.axis_name is None:
            return jax.device_put(batches, jax.local_devices()[0])

        def share(array):
            steps, rows = array.shape[:2]
            shares = array.reshape(steps, self.local, rows // self.local, *array.shape[2:])
            return jax.device_put(shares.swapaxes(0, 1), self._sharding)

        return {key: share(array) for key, array in batches.items()}

    def host_rows(self, batch_size: int) -> slice:
        """The rows of each global batch that this host feeds."""
        rows = batch_size // self.count * self.local
        return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def check_batch_size(batch_size: int, num_devices: int) -> None:
    """Raises a UserError naming sizes that fit, where the devices cannot share a batch."""
    if batch_size % num_devices == 0:
        return
    below = batch_size // num_devices * num_devices
    fitting = [str(size) for size in (below, below + num_devices) if size > 0]
    raise UserError(
        f"config.batch_size: {num_devices} devices cannot share {batch_size} examples equally; "
        f"sizes that fit: {', '.join(fitting)}"
    )


def check_precision(precision: str, backend: str) -> None:
    """Raises a UserError where TensorFloat-32 is asked of what is no NVIDIA GPU."""
    if precision == "tensorfloat32" and backend != "gpu":
        raise UserError(
            f"config.model.precision: tensorfloat32 is for NVIDIA GPUs, and this is a "
            f"{backend.upper()}; set it to highest"
        )


def round_up(batch_size: int, num_devices: int) -> int:
    """The smallest multiple of `num_devices` that is at least `batch_size`."""
    return -(-batch_size // num_devices) * num_devices
