"""Crops: random and five-crop positions, and cutting them on the host or on the device.

Random numbers are a function of (seed, purpose, epoch, position) by NumPy's Philox, whose raw
output never changes. They are the same for any number of devices and hosts, and after a restart.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

# Purposes of random numbers. A new purpose does not change the numbers of the others.
_ORDER, _CROPS = 0, 1


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns a permutation of range(num_examples), int64, for one epoch."""
    return np.argsort(_random_bits(seed, _ORDER, epoch, num_examples), kind="stable")


def random_corners(seed: int, epoch: int, sizes_N2: np.ndarray, crop_size: int) -> np.ndarray:
    """Draws the top and left of one crop of each image, uniformly over all that fit.

    `sizes_N2` are height and width of the image at each position of the epoch, at least
    `crop_size`. Returns (N, 2), int64.
    """
    bits = _random_bits(seed, _CROPS, epoch, sizes_N2.size).reshape(sizes_N2.shape)
    choices = (sizes_N2 - crop_size + 1).astype(np.uint64)
    # Multiply and shift, in integers; the bias is below choices / 2**32.
    return (((bits >> np.uint64(32)) * choices) >> np.uint64(32)).astype(np.int64)


def five_corners(height, width, crop_size: int) -> np.ndarray:
    """Returns the top and left of the four corner crops and the central crop.

    `height` and `width` are numbers or (N,); the result is (5, 2) or (N, 5, 2), int64.
    """
    bottom, right = np.asarray(height) - crop_size, np.asarray(width) - crop_size
    zero = np.zeros_like(bottom)
    tops = (zero, zero, bottom, bottom, bottom // 2)
    lefts = (zero, right, zero, right, right // 2)
    return np.stack([np.stack(tops, -1), np.stack(lefts, -1)], -1).astype(np.int64)


def five_crops(image_HWC: np.ndarray, crop_size: int) -> np.ndarray:
    """Returns (5, crop_size, crop_size, C): the four corners and the centre."""
    corners = five_corners(image_HWC.shape[0], image_HWC.shape[1], crop_size)
    return np.stack([image_HWC[y : y + crop_size, x : x + crop_size] for y, x in corners])


def crop_offsets(corners: np.ndarray, starts: np.ndarray, widths: np.ndarray):
    """Returns each crop's offset in the flat pixels, and its row stride, in bytes, int64.

    `corners` (..., 2) are top and left. `starts`, the images' offsets in bytes, and `widths`, in
    pixels, broadcast to (...), the shape of both results.
    """
    strides = widths * 3
    offsets = starts + corners[..., 0] * strides + corners[..., 1] * 3
    return offsets, np.broadcast_to(strides, offsets.shape)


def cut_crops(pixels: np.ndarray, crop_start, row_stride, crop_size: int) -> np.ndarray:
    """Copies crops (..., K, H, W, 3) from the flat `pixels` on the host.

    `crop_start` and `row_stride`, (..., K), are those of `crop_offsets`.
    """
    result = np.empty((*crop_start.shape, crop_size, crop_size, 3), np.uint8)
    for index in np.ndindex(crop_start.shape):
        strides = (int(row_stride[index]), 3, 1)
        result[index] = np.lib.stride_tricks.as_strided(
            pixels[crop_start[index] :], result.shape[-3:], strides, writeable=False
        )
    return result


def gather_crops(batch: Mapping[str, Any], pixels, crop_size: int):
    """Returns a batch's crops (N, K, H, W, 3), uint8, within a compiled step.

    `batch` is one batch of `Chunk.batches`, `pixels` is `Chunk.pixels`.
    """
    if pixels is None:
        return batch["crops"]
    rows_H = jnp.arange(crop_size, dtype=jnp.int32).reshape(1, 1, -1)
    starts_NKH = batch["crop_start"][:, :, None] + batch["row_stride"][:, :, None] * rows_H
    dimension_numbers = lax.GatherDimensionNumbers(
        offset_dims=(3,), collapsed_slice_dims=(), start_index_map=(0,)
    )
    slice_sizes = (crop_size * 3,)
    crops = lax.gather(
        pixels, starts_NKH[..., None], dimension_numbers, slice_sizes, mode="promise_in_bounds"
    )
    return crops.reshape(*starts_NKH.shape, crop_size, 3)


def _random_bits(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    key = np.array([seed, purpose << 32 | epoch], np.uint64)
    return np.random.Philox(key=key).random_raw(count)
