"""Brings batches to the devices, several at a time, from the device's memory or the host's.

On the device, a split's decoded images are one flat array of bytes, whatever their sizes,
and windows are cut out of it inside the compiled step; only integers travel. On the host,
Grain's threads cut the same windows while the devices compute. The windows are the same.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_vgg.data.batches import Batches, Images, cut_windows
from bn_vgg.errors import UserError
from bn_vgg.parallel import Devices

PLACEMENTS = ("auto", "device", "host")
# Batches of one dispatch, at most: enough that starting it costs nothing.
_BATCHES_PER_DISPATCH = 10
# Positions in the flat array are int32 on the device.
_MOST_BYTES = 2**31 - 1
# What says where windows are.
_PLACES = ("first_SNW", "stride_SN")


class Dispatch(NamedTuple):
    """Batches for one dispatch, on the devices.

    Attributes:
      batches: stacked along axis 0 (with several devices, the second axis).
      size: how many they are.
    """

    batches: dict[str, Any]
    size: int


class Feed:
    """The images of one split, placed.

    Attributes:
      images: the split's, laid out as they are placed; their pixels only if on the host.
      pixels: on the devices, flat; None where the host cuts windows.
    """

    def __init__(self, images: Images, devices: Devices, *, crop_size: int, on_device: bool):
        self._devices, self._crop_size = devices, crop_size
        self.images, self.pixels = images, None
        if on_device:
            packed = images.packed()
            self.pixels = devices.replicate(packed.pixels)
            self.images = packed._replace(pixels=packed.pixels[:0].copy())

    def dispatches(self, batches: Batches, skip: int = 0) -> Iterator[Dispatch]:
        """Yields stacked batches of all hosts, this host's part of some of them at a time.

        Args:
          batches: all of an epoch, or of a split.
          skip: so many of the first.
        """
        rows = self._devices.host_rows(batches["labels_SN"].shape[1])
        batches = {key: array[:, rows] for key, array in batches.items()}
        at_once = batches_per_dispatch(len(batches["labels_SN"]))
        batches = {key: array[skip:] for key, array in batches.items()}
        num_batches = len(batches["labels_SN"])

        def lay_out(index: int) -> dict[str, np.ndarray]:
            chosen = slice(index * at_once, (index + 1) * at_once)
            return self._lay_out({key: array[chosen] for key, array in batches.items()})

        def to_devices(batches: Batches) -> Dispatch:
            return Dispatch(self._devices.shard(batches), len(batches["labels_SN"]))

        num_dispatches = -(-num_batches // at_once)
        if self.pixels is not None:
            yield from map(to_devices, map(lay_out, range(num_dispatches)))
            return
        # Grain costs a third of a second to import, and is needed only here.
        import grain

        reading = grain.ReadOptions(num_threads=_threads(), prefetch_buffer_size=_threads())
        dataset = grain.MapDataset.range(num_dispatches).map(lay_out)
        there = dataset.to_iter_dataset(reading).map(to_devices)
        yield from grain.experimental.ThreadPrefetchIterDataset(there, prefetch_buffer_size=1)

    def _lay_out(self, batches: Batches) -> Batches:
        if self.pixels is not None:
            return batches | {key: batches[key].astype(np.int32) for key in _PLACES}
        first, stride = (batches[key] for key in _PLACES)
        windows = cut_windows(self.images.pixels, first, stride, self._crop_size)
        rest = {key: array for key, array in batches.items() if key not in _PLACES}
        return rest | {"windows_SNW": windows}


def batches_per_dispatch(num_batches: int) -> int:
    """How many batches make a dispatch.

    A divisor of `num_batches`, if one is near `_BATCHES_PER_DISPATCH`, because a last dispatch of
    another size is compiled for itself.
    """
    at_once = min(_BATCHES_PER_DISPATCH, num_batches)
    divisors = [n for n in range(-(-at_once // 2), at_once + 1) if num_batches % n == 0]
    return max(divisors, default=at_once)


def scan_batches(update, carry, stacked, pixels, crop_size: int):
    """Folds `update(carry, batch)` over stacked batches, inside a jitted step.

    Args:
      update: takes the carry and a batch: `windows_NWHWC` (uint8), `labels_N` and whatever
        else was stacked; returns the carry.
      carry: any arrays.
      stacked: `Dispatch.batches` of one device.
      pixels: `Feed.pixels`.
      crop_size: side of the windows in pixels.
    """

    def turn(carry, batch):
        return update(carry, with_windows(batch, pixels, crop_size)), None

    return lax.scan(turn, carry, stacked)[0]


def with_windows(batch, pixels, crop_size: int):
    """Returns one of the stacked batches as a step takes it.

    Args:
      batch: of `Dispatch.batches`, without the first axis.
      pixels: `Feed.pixels`.
      crop_size: side of the windows in pixels.
    """
    batch = {key.replace("_S", "_"): array for key, array in batch.items()}
    if pixels is None:
        windows = batch.pop("windows_NW")
    else:
        windows = cut_on_device(pixels, batch.pop("first_NW"), batch.pop("stride_N"), crop_size)
    return batch | {"windows_NWHWC": windows}


def cut_on_device(pixels, first_NW, stride_N, crop_size: int):
    """Cuts what `cut_windows` cuts inside a compiled step, for one batch: a gather of rows."""
    rows_H = jnp.arange(crop_size, dtype=jnp.int32).reshape(1, 1, -1)
    starts_NWH = first_NW[:, :, None] + stride_N[:, None, None] * rows_H
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(3,), collapsed_slice_dims=(), start_index_map=(0,)
    )
    length = (crop_size * 3,)
    windows = lax.gather(pixels, starts_NWH[..., None], numbers, length, mode="promise_in_bounds")
    return windows.reshape(*starts_NWH.shape, crop_size, 3)


def choose_placement(wanted: str, splits: list[Images]) -> bool:
    """Whether the splits are placed on the device.

    Args:
      wanted: one of `PLACEMENTS`.
      splits: those that are there at the same time.

    Raises:
      UserError: `device` is wanted, but they do not fit.
    """
    if wanted == "host":
        return False
    sizes = [int(images.lengths.sum()) for images in splits]
    room = _room()
    fits = sum(sizes) <= room and max(sizes) <= _MOST_BYTES
    if wanted == "device" and not fits:
        raise UserError(
            f"config.data.placement: {sum(sizes) / 2**30:.1f} GiB of images do not fit on the "
            f"device, where {room / 2**30:.1f} GiB are for them, 2 GiB at most for one split; "
            "set it to host or auto"
        )
    return fits


def _room() -> int:
    """Bytes that images may take on each device: half of an accelerator's memory.

    On a CPU a quarter of the machine's, which its devices share.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    if min(limits) > 0:
        return min(limits) // 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // 4 // jax.local_device_count()


def _threads() -> int:
    return max(1, min(8, (os.cpu_count() or 1) - 1))
