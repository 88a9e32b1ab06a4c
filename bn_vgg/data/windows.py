"""Order and windows: functions of (seed, epoch, position), whoever computes them.

Random numbers are NumPy's Philox, whose raw output is fixed for good, on the host: one
draw an epoch, the same on every host and for any number of devices.
"""

import numpy as np

# What a stream of random numbers is for; a new purpose never shifts another's.
_ORDER, _WINDOWS = 0, 1


def _random_bits(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    """Draws `count` uint64."""
    key = np.array([seed, purpose << 32 | epoch], np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns a permutation of range(num_examples), int64, for one epoch."""
    return np.argsort(_random_bits(seed, _ORDER, epoch, num_examples), kind="stable")


def random_corners(seed: int, epoch: int, sizes_N2: np.ndarray, crop: int) -> np.ndarray:
    """Draws the corner of each position's window, uniformly over all that fit.

    Args:
      seed: of the run.
      epoch: counted from 0.
      sizes_N2: height and width in pixels of the image at each position of the epoch.
      crop: side of the window in pixels, at most each height and width.

    Returns:
      (N, 2): top and left, int64.
    """
    bits = _random_bits(seed, _WINDOWS, epoch, sizes_N2.size).reshape(sizes_N2.shape)
    choices = (sizes_N2 - crop + 1).astype(np.uint64)
    # Multiply and shift: exact, and without a remainder's bias that could matter.
    return ((bits >> np.uint64(32)) * choices >> np.uint64(32)).astype(np.int64)


def five_corners(height, width, crop: int) -> np.ndarray:
    """Returns the top and left of the four corner windows and the central one.

    Args:
      height: of an image, or of N of them, in pixels.
      width: likewise.
      crop: side of the windows in pixels.

    Returns:
      int64, (5, 2) or (N, 5, 2).
    """
    bottom, right = np.asarray(height) - crop, np.asarray(width) - crop
    zero = np.zeros_like(bottom)
    tops = (zero, zero, bottom, bottom, bottom // 2)
    lefts = (zero, right, zero, right, right // 2)
    return np.stack([np.stack(tops, -1), np.stack(lefts, -1)], -1).astype(np.int64)


def five_windows(image_HWC: np.ndarray, crop: int) -> np.ndarray:
    """Returns (5, crop, crop, C): the four corners and the centre."""
    height, width, _ = image_HWC.shape
    return np.stack(
        [
            image_HWC[top : top + crop, left : left + crop]
            for top, left in five_corners(height, width, crop)
        ]
    )


def place(corners_N2: np.ndarray, starts: np.ndarray, widths: np.ndarray):
    """Says where windows are in flat pixels: their first byte, and bytes from row to row.

    Args:
      corners_N2: top and left of each window, in pixels, (..., 2).
      starts: the first byte of each window's image, (...).
      widths: of the images, in pixels, (...).

    Returns:
      Two int64 arrays, (...).
    """
    strides = widths * 3
    return starts + corners_N2[..., 0] * strides + corners_N2[..., 1] * 3, strides
