"""From cached images to chunks, the batches for one call of a compiled program.

For each epoch the host draws integers that say which crops of which images form a batch. A split's
images are one flat array of bytes. It is kept on the devices, where the step cuts its crops and
only integers are transferred; or on the host, where Grain's threads cut the same crops.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from bn_vgg.data.cache import ImageCache
from bn_vgg.data.crops import crop_offsets, cut_crops, epoch_order, five_corners, random_corners
from bn_vgg.data.splits import Splits
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError

PLACEMENTS = ("auto", "host")
# Maximum number of steps in a chunk. With ten, the overhead of a call is negligible.
_MAX_STEPS = 10
# A CPU takes seconds for 100 images of 128x128, and Ctrl-C waits for the end of a chunk.
_MAX_CPU_PIXELS = 2_000_000
# Positions in the flat array are int32 on the device.
_MAX_BYTES = 2**31 - 1

# S batches of N examples with K crops each (1 in training, 2 with mixup, 5 or 1 in evaluation):
#   crop_start, row_stride  (S, N, K), int64, see `crop_offsets`; if images are on the host, `crops`
#                           (S, N, K, H, W, C), uint8, replaces both
#   label                   (S, N), int32
#   position                (S, N), int32, in training; with mixup also `partner_label`
#   mask                    (S, N), float32, in evaluation: 0 for padding
Batches = dict[str, np.ndarray]


class Chunk(NamedTuple):
    """Batches for one call of a compiled program, on the devices."""

    batches: dict[str, Any]  # see `Batches`; with several devices the first axis is over these
    pixels: Any  # of the split, flat uint8; None if they are on the host
    num_steps: int

    def step(self, index: int, devices: Devices) -> "Chunk":
        """Returns a chunk that holds only batch `index`."""
        axis = 0 if devices.axis_name is None else 1
        one = {
            key: lax.slice_in_dim(array, index, index + 1, axis=axis)
            for key, array in self.batches.items()
        }
        return Chunk(one, self.pixels, 1)


class Split(NamedTuple):
    """The images of one split."""

    pixels: Any  # flat uint8; on the host of all splits, on the devices only of this one
    starts: np.ndarray  # offset of each image, in bytes, int64, (N,)
    sizes: np.ndarray  # height and width in pixels, int64, (N, 2)
    labels: np.ndarray  # int32, (N,)

    @property
    def lengths(self) -> np.ndarray:
        """Size of each image in bytes, int64, (N,)."""
        return self.sizes.prod(axis=1) * 3

    def on_device(self, devices: Devices, num_bytes: int) -> "Split":
        """Copies only this split's images to every device, padded to `num_bytes`."""
        packed = np.zeros(num_bytes, np.uint8)
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        for source, start, end in zip(self.starts, starts, ends, strict=True):
            packed[start:end] = self.pixels[source : source + end - start]
        return self._replace(starts=starts, pixels=devices.replicate(packed))


class Data:
    """The images of a run, and the chunks of batches that its steps take.

    Attributes:
      description: the numbers of images and their placement, to be printed.
      steps_per_epoch: training batches of an epoch; an incomplete last one is dropped.
      train_split, valid_split, test_split: the images, all on the devices or all `on_host`.
    """

    def __init__(
        self, config: Mapping[str, Any], cache: ImageCache, splits: Splits, devices: Devices
    ):
        """Places the images of `config.data.source`.

        Raises:
          UserError: there are too few images for a batch.
        """
        self._eval_config, self._devices = config["eval"], devices
        self._seed, self._batch_size = config["seed"], config["batch_size"]
        self._crop_size, self._mixup = config["data"]["crop_size"], config["augment"]["mixup"]
        if len(splits.train) < self._batch_size:
            raise UserError(
                f"config.batch_size: {len(splits.train)} training images do not fill a batch of "
                f"{self._batch_size}"
            )
        # A batch larger than both held-out splits would contain only more padding.
        most = max(len(splits.valid), len(splits.test))
        share = -(-min(self._eval_config["batch_size"], most) // devices.count)
        self._eval_batch_size = share * devices.count
        self.steps_per_epoch = len(splits.train) // self._batch_size
        host_splits = [
            Split(cache.pixels, cache.starts[chosen], cache.sizes[chosen], cache.labels[chosen])
            for chosen in splits
        ]
        self._host_train_split = host_splits[0]
        self.on_host = not _fits(config["data"]["placement"], host_splits)
        train, *held_out = (int(split.lengths.sum()) for split in host_splits)
        # One compiled program evaluates both, so they need the same length.
        num_bytes_of_each = train, max(held_out), max(held_out)
        self.train_split, self.valid_split, self.test_split = (
            split if self.on_host else split.on_device(devices, num_bytes)
            for split, num_bytes in zip(host_splits, num_bytes_of_each, strict=True)
        )
        self.description = (
            f"{len(splits.train)} training, {len(splits.valid)} validation, {len(splits.test)} "
            f"test images on the {'host' if self.on_host else 'device'}"
        )

    def train(self, epoch: int, *, skip: int = 0) -> Iterator[Chunk]:
        """Yields the training batches of `epoch`, counted from 0, except the first `skip`."""
        return self._chunks(self.train_split, self._epoch(epoch, self.train_split), skip)

    def precise(self, epoch: int) -> Iterator[Chunk]:
        """Yields the first training batches of `epoch`, for PreciseBN."""
        count = -(-self._eval_config["precise_examples"] // self._batch_size)
        batches = self._epoch(epoch, self.train_split)
        return self._chunks(self.train_split, {key: a[:count] for key, a in batches.items()})

    def evaluation(self, split: Split) -> Iterator[Chunk]:
        """Yields every example's five crops, see `eval_batches`."""
        batches = eval_batches(split, self._eval_batch_size, self._crop_size)
        return self._chunks(split, batches)

    def compared(self) -> Iterator[Chunk]:
        """Yields the central crops of the first validation images, in batches of `batch_size`."""
        count, split = self._eval_config["compared_examples"], self.valid_split
        first = Split(split.pixels, *(each[:count] for each in split[1:4]))
        batches = eval_batches(first, self._batch_size, self._crop_size)
        batches |= {name: batches[name][:, :, -1:] for name in ("crop_start", "row_stride")}
        return self._chunks(split, batches)

    def first_crops(self) -> np.ndarray:
        """Returns the crops of the first training batch: (N, H, W, C), uint8."""
        batches = self._epoch(0, self._host_train_split)
        first, stride = batches["crop_start"][0], batches["row_stride"][0]
        return cut_crops(self._host_train_split.pixels, first, stride, self._crop_size)[:, 0]

    def _epoch(self, epoch: int, split: Split) -> Batches:
        batches = train_batches(split, self._seed, epoch, self._batch_size, self._crop_size)
        return with_partners(batches) if self._mixup else batches

    def _chunks(self, split: Split, batches: Batches, skip: int = 0) -> Iterator[Chunk]:
        num_batches, batch_size, num_crops = batches["crop_start"].shape
        rows = self._devices.host_rows(batch_size)
        length = chunk_length(num_batches, batch_size * num_crops * self._crop_size**2)
        batches = {key: array[skip:, rows] for key, array in batches.items()}

        def make_batches(index: int) -> Batches:
            part = {k: a[index * length : (index + 1) * length] for k, a in batches.items()}
            start, stride = part.pop("crop_start"), part.pop("row_stride")
            if self.on_host:
                return part | {"crops": cut_crops(split.pixels, start, stride, self._crop_size)}
            offsets = {"crop_start": start.astype(np.int32), "row_stride": stride.astype(np.int32)}
            return part | offsets

        def to_devices(part: Batches) -> Chunk:
            pixels = None if self.on_host else split.pixels
            return Chunk(self._devices.shard(part), pixels, len(part["label"]))

        indices = range(-(-(num_batches - skip) // length))
        if not self.on_host:
            yield from map(to_devices, map(make_batches, indices))
            return
        # Imported only here, because it takes a third of a second.
        import grain

        threads = max(1, min(8, (os.cpu_count() or 1) - 1))
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        dataset = grain.MapDataset.range(len(indices)).map(make_batches)
        chunks = dataset.to_iter_dataset(reading).map(to_devices)
        yield from grain.experimental.ThreadPrefetchIterDataset(chunks, prefetch_buffer_size=1)


def chunk_length(num_batches: int, pixels_per_batch: int) -> int:
    """Returns the number of batches in a chunk, for batches of `pixels_per_batch` pixels.

    It is a divisor of `num_batches` if there is one near the limit, because a shorter last chunk
    would have to be compiled, too.
    """
    limit = min(_MAX_STEPS, num_batches)
    if jax.default_backend() == "cpu":
        limit = max(1, min(limit, _MAX_CPU_PIXELS // pixels_per_batch))
    divisors = [n for n in range(-(-limit // 2), limit + 1) if num_batches % n == 0]
    return max(divisors, default=limit)


def train_batches(split: Split, seed: int, epoch: int, batch_size: int, crop_size: int) -> Batches:
    """Draws the order and random crops of one epoch: full batches, each example at most once.

    Returns `crop_start` (K = 1), `row_stride`, `label` and `position`, that of the example in the
    epoch. `batch_size` is over all hosts.
    """
    count = len(split.labels)
    order = epoch_order(seed, epoch, count)
    corners = random_corners(seed, epoch, split.sizes[order], crop_size)
    first, stride = crop_offsets(corners, split.starts[order], split.sizes[order, 1])
    num_batches = count // batch_size
    used, shape = num_batches * batch_size, (num_batches, batch_size)
    return {
        "crop_start": first[:used].reshape(*shape, 1),
        "row_stride": stride[:used].reshape(*shape, 1),
        "label": split.labels[order[:used]].reshape(shape),
        "position": np.arange(used, dtype=np.int32).reshape(shape),
    }


def with_partners(batches: Batches) -> Batches:
    """Adds the crop and the `partner_label` of each example's partner, the previous example."""
    twice = {
        name: np.concatenate([batches[name], np.roll(batches[name], 1, axis=1)], axis=2)
        for name in ("crop_start", "row_stride")
    }
    return batches | twice | {"partner_label": np.roll(batches["label"], 1, axis=1)}


def eval_batches(split: Split, batch_size: int, crop_size: int) -> Batches:
    """Returns batches of every example's five crops; the last batch is padded.

    If all images are as large as a crop, there is only one crop. Returns `crop_start` (the central
    crop last), `row_stride`, `label` and `mask` (0 for padding). `batch_size` is over all hosts.
    """
    count = len(split.labels)
    corners_N52 = five_corners(split.sizes[:, 0], split.sizes[:, 1], crop_size)
    if (split.sizes == crop_size).all():
        corners_N52 = corners_N52[:, -1:]
    first, stride = crop_offsets(corners_N52, split.starts[:, None], split.sizes[:, None, 1])
    num_batches = -(-count // batch_size)
    chosen = np.resize(np.arange(count), num_batches * batch_size)
    index, shape = np.arange(len(chosen)), (num_batches, batch_size)
    return {
        "crop_start": first[chosen].reshape(*shape, -1),
        "row_stride": stride[chosen].reshape(*shape, -1),
        "label": split.labels[chosen].reshape(shape),
        "mask": (index < count).astype(np.float32).reshape(shape),
    }


def _fits(placement: str, splits: list[Split]) -> bool:
    """Whether to place the images of `splits` on the device."""
    # On a TPU XLA copies the rows of crops one after the other, which takes several times as long
    # as the rest of a step.
    if placement == "host" or jax.default_backend() == "tpu":
        return False
    sizes = [int(split.lengths.sum()) for split in splits]
    return sum(sizes) <= _room() and max(sizes) <= _MAX_BYTES


def _room() -> int:
    """Returns the bytes that images may take on each device.

    Half of an accelerator's memory; on a CPU a quarter of the host's, split over its devices.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    if min(limits) > 0:
        return min(limits) // 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // 4 // jax.local_device_count()
