"""Which windows make up each batch: integers, for an epoch at a time.

They are drawn on the host. Where the windows are then cut, there or on the device, is the
business of `bn_vgg.feed`.
"""

from typing import NamedTuple

import numpy as np

from bn_vgg.data import windows
from bn_vgg.data.cache import ImageCache

# Batches, stacked: (S, N, ...) for S batches of N examples.
Batches = dict[str, np.ndarray]


class Images(NamedTuple):
    """The images of one split.

    Attributes:
      pixels: one image after the other, uint8, flat; others may lie between them.
      starts: the first byte of each, int64, (N,).
      sizes: height and width in pixels, int64, (N, 2).
      labels: int32, (N,).
    """

    pixels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, cache: ImageCache, examples: np.ndarray) -> "Images":
        """Takes the images with the given indices, in that order; nothing is copied."""
        return cls(
            cache.pixels, cache.starts[examples], cache.sizes[examples], cache.labels[examples]
        )

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each image."""
        return self.sizes.prod(axis=1) * 3

    def packed(self) -> "Images":
        """Copies the pixels so that nothing lies between them."""
        ends = np.cumsum(self.lengths)
        pixels = np.empty(ends[-1], np.uint8)
        for first, last, start in zip(ends - self.lengths, ends, self.starts, strict=True):
            pixels[first:last] = self.pixels[start : start + last - first]
        return self._replace(pixels=pixels, starts=ends - self.lengths)


def num_train_batches(num_examples: int, batch_size: int) -> int:
    """Counts an epoch's batches; a last incomplete one is dropped."""
    return num_examples // batch_size


def train_batches(
    images: Images, *, seed: int, epoch: int, batch_size: int, crop_size: int
) -> Batches:
    """Draws one epoch: every example at most once, in full batches.

    Args:
      images: of the training split.
      seed: of the run; with `epoch` it decides order and windows.
      epoch: counted from 0.
      batch_size: over all hosts.
      crop_size: side of the windows in pixels.

    Returns:
      `first_SNW` and `stride_SN` (int64, as `windows.place` says, W = 1), `labels_SN` and
      `positions_SN` (int32, of the example in the epoch).
    """
    count = len(images.labels)
    order = windows.epoch_order(seed, epoch, count)
    corners = windows.random_corners(seed, epoch, images.sizes[order], crop_size)
    first, stride = windows.place(corners, images.starts[order], images.sizes[order, 1])
    num_batches = num_train_batches(count, batch_size)
    used, shape = num_batches * batch_size, (num_batches, batch_size)
    return {
        "first_SNW": first[:used].reshape(*shape, 1),
        "stride_SN": stride[:used].reshape(shape),
        "labels_SN": images.labels[order[:used]].reshape(shape),
        "positions_SN": np.arange(used, dtype=np.int32).reshape(shape),
    }


def eval_batches(
    images: Images, *, batch_size: int, crop_size: int, num_compared: int = 0
) -> Batches:
    """Lays out every example's five windows, each example once; the last batch is padded.

    Where every image is exactly one window large, the five are one and it comes once.

    Args:
      images: of the split.
      batch_size: over all hosts.
      crop_size: side of the windows in pixels.
      num_compared: how many of the first examples `compared_SN` marks.

    Returns:
      `first_SNW` and `stride_SN` (int64, as `windows.place` says; the centre last),
      `labels_SN` (int32), `mask_SN` (float32, 0 for padding) and `compared_SN` (float32).
    """
    count = len(images.labels)
    height, width = images.sizes.T
    corners_N52 = windows.five_corners(height, width, crop_size)
    if (images.sizes == crop_size).all():
        corners_N52 = corners_N52[:, -1:]
    first, stride = windows.place(corners_N52, images.starts[:, None], images.sizes[:, None, 1])
    num_batches = -(-count // batch_size)
    chosen = np.resize(np.arange(count), num_batches * batch_size)
    places, shape = np.arange(len(chosen)), (num_batches, batch_size)
    return {
        "first_SNW": first[chosen].reshape(*shape, -1),
        "stride_SN": stride[chosen, 0].reshape(shape),
        "labels_SN": images.labels[chosen].reshape(shape),
        "mask_SN": (places < count).astype(np.float32).reshape(shape),
        "compared_SN": (places < min(count, num_compared)).astype(np.float32).reshape(shape),
    }


def compared_batches(images: Images, *, batch_size: int, crop_size: int, count: int) -> Batches:
    """Lays out the centre windows (W = 1) of the first `count` examples.

    Returns:
      `first_SNW`, `stride_SN`, `labels_SN` and `mask_SN` as `eval_batches`.
    """
    first = Images(images.pixels, *(array[:count] for array in images[1:]))
    batches = eval_batches(first, batch_size=batch_size, crop_size=crop_size)
    del batches["compared_SN"]
    return batches | {"first_SNW": batches["first_SNW"][:, :, -1:]}


def cut_windows(pixels: np.ndarray, first: np.ndarray, stride: np.ndarray, crop_size: int):
    """Copies windows (..., W, crop, crop, 3) out of flat `pixels`.

    Args:
      pixels: uint8.
      first: (..., W), and
      stride: (...), as `windows.place` says.
      crop_size: side of the windows in pixels.
    """
    result = np.empty((*first.shape, crop_size, crop_size, 3), np.uint8)
    for index in np.ndindex(first.shape):
        strides = (int(stride[index[:-1]]), 3, 1)
        result[index] = np.lib.stride_tricks.as_strided(
            pixels[first[index] :], result.shape[-3:], strides, writeable=False
        )
    return result
